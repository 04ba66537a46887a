// SPDX-License-Identifier: Apache-2.0
// fp32 vectors on 512-bit registers (see simd.h). Needs AVX-512 F, BW, VL, DQ and BF16.
#pragma once
#include <immintrin.h>

#include "simd.h"

namespace pe::cpu {
namespace {

struct Avx512Vector {
  static constexpr int kWidth = 16;
  __m512 v;

  static Avx512Vector zero() { return {_mm512_setzero_ps()}; }
  static Avx512Vector set1(float x) { return {_mm512_set1_ps(x)}; }

  static Avx512Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Avx512Vector load(const Bf16* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Avx512Vector load(const F16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Avx512Vector load(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  static Avx512Vector load(const Bf16* p, int64_t count) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first(count), p));
  }
  static Avx512Vector load(const F16* p, int64_t count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p))};
  }

  static void store(float* p, Avx512Vector a) { _mm512_storeu_ps(p, a.v); }
  static void store(Bf16* p, Avx512Vector a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a)); }
  static void store(F16* p, Avx512Vector a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a)); }
  static void store(float* p, Avx512Vector a, int64_t count) { _mm512_mask_storeu_ps(p, first(count), a.v); }
  static void store(Bf16* p, Avx512Vector a, int64_t count) {
    _mm256_mask_storeu_epi16(p, first(count), narrow_bf16(a));
  }
  static void store(F16* p, Avx512Vector a, int64_t count) { _mm256_mask_storeu_epi16(p, first(count), narrow_f16(a)); }

  friend Avx512Vector operator+(Avx512Vector a, Avx512Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Avx512Vector operator-(Avx512Vector a, Avx512Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Avx512Vector operator*(Avx512Vector a, Avx512Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Avx512Vector operator/(Avx512Vector a, Avx512Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Avx512Vector multiply_add(Avx512Vector a, Avx512Vector b, Avx512Vector c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }

  static Avx512Vector exp(Avx512Vector a) {
    // min and max return their second operand when one is NaN, so that NaN passes through.
    __m512 x = _mm512_min_ps(_mm512_set1_ps(kExpLimit), _mm512_max_ps(_mm512_set1_ps(-kExpLimit), a.v));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)), _MM_FROUND_TO_NEAREST_INT);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), x);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low), x);
    __m512 e = _mm512_set1_ps(kExpTaylor[0]);
    for (int i = 1; i < 7; ++i) e = _mm512_fmadd_ps(e, x, _mm512_set1_ps(kExpTaylor[i]));
    return {_mm512_scalef_ps(e, n)};
  }

  static float sum(Avx512Vector a) { return _mm512_reduce_add_ps(a.v); }

 private:
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Avx512Vector widen_bf16(__m256i half) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static __m256i narrow_bf16(Avx512Vector a) { return (__m256i)_mm512_cvtneps_pbh(a.v); }
  static __m256i narrow_f16(Avx512Vector a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
};

}  // namespace
}  // namespace pe::cpu
