// SPDX-License-Identifier: Apache-2.0
// Dense layer with AVX2 and FMA. bf16 is widened in registers: the weight's two k of a feature share a 32-bit lane, so
// the odd one is the lane with its low half cleared and the even one the lane shifted left.
#include "linear_kernels.h"

#if defined(__x86_64__)
#include "linear_blocked.h"
#include "simd_avx2.h"

namespace pe::cpu {
namespace {

// Of 16 registers, 4 sums of 2 take 8, a line of the weight 4 and a row's pair 2.
struct Avx2 {
  struct Sum {
    __m256 low, high;  // features 0..7 and 8..15
  };
  static constexpr int kMaxRows = 4;
  static constexpr int max_panels(int rows) { return 4 / rows; }
  static constexpr int64_t kRowsBytes = 128 << 10;  // half of the smallest L2
  static constexpr int64_t kPrefetchLines = 32;
  static constexpr int kStepBytes = 4;

  static Sum zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Sum load_sum(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store_sum(float* p, Sum s) {
    _mm256_storeu_ps(p, s.low);
    _mm256_storeu_ps(p + 8, s.high);
  }
};

struct Avx2Bf16 : Avx2 {
  static constexpr int64_t kStepK = 2;
  struct Pair {
    __m256 even, odd;
  };
  struct Line {
    Pair low, high;
  };

  static Pair widen(__m256i lanes) {
    const __m256i odd = _mm256_and_si256(lanes, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lanes, 16)), _mm256_castsi256_ps(odd)};
  }
  static Line load_line(const char* p) {
    const auto* lanes = reinterpret_cast<const __m256i*>(p);
    return {widen(_mm256_loadu_si256(lanes)), widen(_mm256_loadu_si256(lanes + 1))};
  }
  static Pair broadcast(const char* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return widen(_mm256_set1_epi32(pair));
  }
  static Sum multiply_add(Sum sum, Pair x, Line w) {
    return {_mm256_fmadd_ps(x.odd, w.low.odd, _mm256_fmadd_ps(x.even, w.low.even, sum.low)),
            _mm256_fmadd_ps(x.odd, w.high.odd, _mm256_fmadd_ps(x.even, w.high.even, sum.high))};
  }

  static void advance(const Block& b, int rows, int panels) { advance_vector<Avx2Bf16>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<Avx2Vector, Bf16>(p, row, feature, sums, count);
  }
};

struct Avx2F32 : Avx2 {
  static constexpr int64_t kStepK = 1;
  using Line = Sum;
  using Pair = __m256;

  static Line load_line(const char* p) { return load_sum(reinterpret_cast<const float*>(p)); }
  static Pair broadcast(const char* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static Sum multiply_add(Sum sum, Pair x, Line w) {
    return {_mm256_fmadd_ps(x, w.low, sum.low), _mm256_fmadd_ps(x, w.high, sum.high)};
  }

  static void advance(const Block& b, int rows, int panels) { advance_vector<Avx2F32>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<Avx2Vector, float>(p, row, feature, sums, count);
  }
};

}  // namespace

void linear_avx2_bf16(const LinearParams& p, const LinearTile& tile) { BlockedLinear<Avx2Bf16>(p, tile).run(); }
void linear_avx2_f32(const LinearParams& p, const LinearTile& tile) { BlockedLinear<Avx2F32>(p, tile).run(); }

}  // namespace pe::cpu
#endif
