// SPDX-License-Identifier: Apache-2.0
// Dense layer with AVX-512: vdpbf16ps for bf16, FMA for f32. One register holds one panel's sums of one row.
#include "linear_kernels.h"

#if defined(__x86_64__)
#include "linear_blocked.h"
#include "simd_avx512.h"

namespace pe::cpu {
namespace {

// multiplications.
struct Avx512 {
  using Sum = __m512;
  static constexpr int kMaxRows = 14;
  // Sums, the panels' lines and one broadcast must fit 32 registers: 14 rows take 2 panels, 9 take 3, 6 take 4.
  static constexpr int max_panels(int rows) { return rows <= 6 ? 4 : 31 / (rows + 1); }
  static constexpr int64_t kRowsBytes = 512 << 10;  // half of the smallest L2
  static constexpr int64_t kPrefetchLines = 32;     // 2 KiB: the rate is flat from 1 to 4 KiB
  static constexpr int kStepBytes = 4;

  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum load_sum(const float* p) { return _mm512_loadu_ps(p); }
  static void store_sum(float* p, Sum s) { _mm512_storeu_ps(p, s); }
};

struct Avx512Bf16 : Avx512 {
  static constexpr int64_t kStepK = 2;
  using Line = __m512bh;
  using Pair = __m512bh;

  static Line load_line(const char* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Pair broadcast(const char* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Sum multiply_add(Sum sum, Pair x, Line w) { return _mm512_dpbf16_ps(sum, x, w); }

  static void advance(const Block& b, int rows, int panels) { advance_vector<Avx512Bf16>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<Avx512Vector, Bf16>(p, row, feature, sums, count);
  }
};

struct Avx512F32 : Avx512 {
  static constexpr int64_t kStepK = 1;
  using Line = __m512;
  using Pair = __m512;

  static Line load_line(const char* p) { return _mm512_loadu_ps(p); }
  static Pair broadcast(const char* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return _mm512_set1_ps(x);
  }
  static Sum multiply_add(Sum sum, Pair x, Line w) { return _mm512_fmadd_ps(x, w, sum); }

  static void advance(const Block& b, int rows, int panels) { advance_vector<Avx512F32>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<Avx512Vector, float>(p, row, feature, sums, count);
  }
};

}  // namespace

void linear_avx512_bf16(const LinearParams& p, const LinearTile& tile) { BlockedLinear<Avx512Bf16>(p, tile).run(); }
void linear_avx512_f32(const LinearParams& p, const LinearTile& tile) { BlockedLinear<Avx512F32>(p, tile).run(); }

}  // namespace pe::cpu
#endif
