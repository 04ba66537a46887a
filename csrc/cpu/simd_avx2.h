// SPDX-License-Identifier: Apache-2.0
// fp32 vectors on 256-bit registers (see simd.h). Needs AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include "simd.h"

namespace pe::cpu {
namespace {

struct Avx2Vector {
  static constexpr int kWidth = 8;
  __m256 v;

  static Avx2Vector zero() { return {_mm256_setzero_ps()}; }
  static Avx2Vector set1(float x) { return {_mm256_set1_ps(x)}; }

  static Avx2Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Avx2Vector load(const Bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static Avx2Vector load(const F16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  template <typename T>
  static Avx2Vector load(const T* p, int64_t count) {
    T whole[kWidth] = {};
    std::memcpy(whole, p, static_cast<size_t>(count) * sizeof(T));
    return load(whole);
  }

  static void store(float* p, Avx2Vector a) { _mm256_storeu_ps(p, a.v); }
  static void store(Bf16* p, Avx2Vector a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static void store(F16* p, Avx2Vector a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
  }
  template <typename T>
  static void store(T* p, Avx2Vector a, int64_t count) {
    T whole[kWidth];
    store(whole, a);
    std::memcpy(p, whole, static_cast<size_t>(count) * sizeof(T));
  }

  friend Avx2Vector operator+(Avx2Vector a, Avx2Vector b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Avx2Vector operator-(Avx2Vector a, Avx2Vector b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Avx2Vector operator*(Avx2Vector a, Avx2Vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Avx2Vector operator/(Avx2Vector a, Avx2Vector b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Avx2Vector multiply_add(Avx2Vector a, Avx2Vector b, Avx2Vector c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

  static Avx2Vector exp(Avx2Vector a) {
    // min and max return their second operand when one is NaN, so that NaN passes through.
    __m256 x = _mm256_min_ps(_mm256_set1_ps(kExpLimit), _mm256_max_ps(_mm256_set1_ps(-kExpLimit), a.v));
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), x);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low), x);
    __m256 e = _mm256_set1_ps(kExpTaylor[0]);
    for (int i = 1; i < 7; ++i) e = _mm256_fmadd_ps(e, x, _mm256_set1_ps(kExpTaylor[i]));
    // 2^n in two factors: n reaches 150 at the limits.
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return {_mm256_mul_ps(_mm256_mul_ps(e, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)))};
  }

  static float sum(Avx2Vector a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

 private:
  static __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace
}  // namespace pe::cpu
