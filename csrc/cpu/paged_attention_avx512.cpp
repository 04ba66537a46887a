// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "paged_attention_pairs.h"
#include "paged_attention_wide.h"

namespace pe::cpu {
namespace {

// 6 rows x 4 tiles: 24 of 32 registers.
struct DotProducts {
  struct Session {};
  static constexpr int kMaxRows = 6, kMaxTiles = 4;

  static void multiply(const PairProduct& p) {
    for (int64_t r = 0; r < p.rows; r += kMaxRows) {
      int64_t n = 0;
      for (; n + kMaxTiles <= p.n_tiles; n += kMaxTiles) dispatch<kMaxRows, kMaxTiles>(p, r, n);
      for (; n < p.n_tiles; ++n) dispatch<kMaxRows, 1>(p, r, n);
    }
  }

 private:
  template <int kRows, int kTiles>
  static void dispatch(const PairProduct& p, int64_t r, int64_t n) {
    if constexpr (kRows > 1) {
      if (p.rows - r < kRows) return dispatch<kRows - 1, kTiles>(p, r, n);
    }
    block<kRows, kTiles>(p, r, n);
  }

  template <int kRows, int kTiles>
  static void block(const PairProduct& p, int64_t first_row, int64_t first_tile) {
    __m512 sums[kRows][kTiles];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kTiles; ++n) sums[r][n] = _mm512_setzero_ps();
    }
    const uint32_t* a = p.a + first_row * p.a_stride;
    for (int64_t k = 0; k < p.k_tiles * kPairsPerTile; ++k) {
      const uint32_t* line =
          p.b + (k / kPairsPerTile * p.b_tiles + first_tile) * kPairTile + k % kPairsPerTile * kPairsPerTile;
      __m512bh b[kTiles];
#pragma GCC unroll 4
      for (int n = 0; n < kTiles; ++n) b[n] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(line + n * kPairTile));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[r * p.a_stride + k])));
#pragma GCC unroll 4
        for (int n = 0; n < kTiles; ++n) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, b[n]);
      }
    }
    float* out = p.out + first_row * p.out_stride + first_tile * 16;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kTiles; ++n) _mm512_storeu_ps(out + r * p.out_stride + n * 16, sums[r][n]);
    }
  }
};

}  // namespace

const AttentionKernel& attention_avx512(DType dtype, DType stored, int64_t head_dim) {
  if (dtype == DType::kBF16 && head_dim % 32 == 0) return pairs_kernel<DotProducts>(stored);
  return widened_kernel(dtype, stored);
}

}  // namespace pe::cpu
#endif
