// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "paged_attention_pairs.h"

namespace pe::cpu {
namespace {

// Tiles 0..3 hold sums, 4 the rows, 5 a tile of b. The shapes are always whole: rows past the block's are computed and
// ignored.
struct Tiles {
  struct Session {
    Session() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
      } config;
      _tile_loadconfig(&config);
    }
    ~Session() { _tile_release(); }
  };

  static void multiply(const PairProduct& p) {
    int64_t n = 0;
    for (; n + 4 <= p.n_tiles; n += 4) multiply_four(p, n);
    for (; n < p.n_tiles; ++n) multiply_one(p, n);
  }

 private:
  static const uint32_t* tile(const PairProduct& p, int64_t k, int64_t n) {
    return p.b + (k * p.b_tiles + n) * kPairTile;
  }

  static void multiply_four(const PairProduct& p, int64_t n) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < p.k_tiles; ++k) {
      _tile_loadd(4, p.a + k * kPairsPerTile, p.a_stride * 4);
      _tile_loadd(5, tile(p, k, n), 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, tile(p, k, n + 1), 64);
      _tile_dpbf16ps(1, 4, 5);
      _tile_loadd(5, tile(p, k, n + 2), 64);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, tile(p, k, n + 3), 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    float* out = p.out + n * 16;
    _tile_stored(0, out, p.out_stride * 4);
    _tile_stored(1, out + 16, p.out_stride * 4);
    _tile_stored(2, out + 32, p.out_stride * 4);
    _tile_stored(3, out + 48, p.out_stride * 4);
  }

  static void multiply_one(const PairProduct& p, int64_t n) {
    _tile_zero(0);
    for (int64_t k = 0; k < p.k_tiles; ++k) {
      _tile_loadd(4, p.a + k * kPairsPerTile, p.a_stride * 4);
      _tile_loadd(5, tile(p, k, n), 64);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, p.out + n * 16, p.out_stride * 4);
  }
};

}  // namespace

const AttentionKernel& attention_amx(DType dtype, DType stored, int64_t head_dim) {
  if (dtype == DType::kBF16 && head_dim % 32 == 0) return pairs_kernel<Tiles>(stored);
  return attention_avx512(dtype, stored, head_dim);
}

}  // namespace pe::cpu
#endif
