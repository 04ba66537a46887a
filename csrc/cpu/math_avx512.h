// SPDX-License-Identifier: Apache-2.0
// Float, Int and Mask of 16 lanes: AVX-512 F, BW, VL and DQ.
#pragma once
// GCC 12 sees its own _mm512_undefined_ps() as an uninitialised variable (GCC PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include "math.h"

namespace pe::cpu {
namespace {

struct Mask {
  __mmask16 v;
  PE_MEMBER unsigned bits() const { return v; }
};
PE_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
PE_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
PE_INLINE Mask operator~(Mask a) { return {static_cast<__mmask16>(~a.v)}; }

struct Int {
  __m512i v;
  PE_MEMBER static Int splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
  PE_MEMBER static Int iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
  PE_MEMBER static Int load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  PE_MEMBER void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
};
PE_INLINE Int operator+(Int a, Int b) { return {_mm512_add_epi32(a.v, b.v)}; }
PE_INLINE Int operator*(Int a, Int b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
PE_INLINE Int operator^(Int a, Int b) { return {_mm512_xor_si512(a.v, b.v)}; }
PE_INLINE Int operator~(Int a) { return a ^ Int::splat(-1); }
template <int kBits>
PE_INLINE Int shift_left(Int a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
PE_INLINE Int shift_right(Int a) {  // zeros come in
  return {_mm512_srli_epi32(a.v, kBits)};
}
PE_INLINE Mask less(Int a, Int b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
PE_INLINE Int select(Mask m, Int a, Int b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }

struct Float {
  static constexpr int kWidth = 16;
  static constexpr int kRows = 6, kColumns = 4;  // accumulators of a register block: 24 of 32 registers
  __m512 v;

  PE_MEMBER static Float splat(float x) { return {_mm512_set1_ps(x)}; }
  PE_MEMBER static Float load(const float* p) { return {_mm512_loadu_ps(p)}; }
  PE_MEMBER static Float load(const BF16* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  PE_MEMBER static Float load(const F16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  PE_MEMBER static Float load(const F8* p) { return widen_f8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  PE_MEMBER void store(float* p) const { _mm512_storeu_ps(p, v); }
  PE_MEMBER void store(F8* p) const { narrow_f8(p, kWidth); }
  PE_MEMBER void store(BF16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16()); }
  PE_MEMBER void store(F16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  PE_MEMBER float first() const { return _mm512_cvtss_f32(v); }
  // Of what is left of a row, n elements, a positive multiple of 8: all lanes, or the first 8 with zeros in the others.
  template <typename T>
  PE_MEMBER static Float load(const T* p, int64_t n) {
    return n >= kWidth ? load(p) : load_half(p);
  }
  template <typename T>
  PE_MEMBER void store(T* p, int64_t n) const {
    n >= kWidth ? store(p) : store_half(p);
  }

 private:
  PE_MEMBER static Float load_half(const float* p) { return {_mm512_maskz_loadu_ps(0xff, p)}; }
  PE_MEMBER static Float load_half(const BF16* p) {
    return widen_bf16(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  PE_MEMBER static Float load_half(const F16* p) {
    return {_mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  PE_MEMBER static Float load_half(const F8* p) {
    return widen_f8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  PE_MEMBER void store_half(F8* p) const { narrow_f8(p, kWidth / 2); }
  PE_MEMBER void store_half(float* p) const { _mm512_mask_storeu_ps(p, 0xff, v); }
  PE_MEMBER void store_half(BF16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(narrow_bf16()));
  }
  PE_MEMBER void store_half(F16* p) const {
    const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(half));
  }
  PE_MEMBER static Float widen_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  PE_MEMBER static Float widen_f8(__m128i bytes) {
    const __m512i x = _mm512_cvtepu8_epi32(bytes), rest = _mm512_and_si512(x, _mm512_set1_epi32(0x7f));
    const __m512 magnitude = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(rest, 20)), _mm512_set1_ps(0x1p120f));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(rest, _mm512_set1_epi32(0x7f));
    const __m512i bits = _mm512_mask_blend_epi32(nan, _mm512_castps_si512(magnitude), _mm512_set1_epi32(0x7fc00000));
    return {_mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_slli_epi32(_mm512_andnot_si512(rest, x), 24)))};
  }
  PE_MEMBER void narrow_f8(F8* p, int n) const {
    float lanes[kWidth];
    store(lanes);
    for (int i = 0; i < n; ++i) from_float(lanes[i], p + i);
  }
  // By integers: the conversion instruction would flush subnormals.
  PE_MEMBER __m256i narrow_bf16() const {
    const __m512i x = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }
};
PE_INLINE Float operator+(Float a, Float b) { return {_mm512_add_ps(a.v, b.v)}; }
PE_INLINE Float operator-(Float a, Float b) { return {_mm512_sub_ps(a.v, b.v)}; }
PE_INLINE Float operator*(Float a, Float b) { return {_mm512_mul_ps(a.v, b.v)}; }
PE_INLINE Float operator/(Float a, Float b) { return {_mm512_div_ps(a.v, b.v)}; }
PE_INLINE Float fma(Float a, Float b, Float c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PE_INLINE Float fnma(Float a, Float b, Float c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
PE_INLINE Mask less(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
PE_INLINE Mask at_most(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
PE_INLINE Float select(Mask m, Float a, Float b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
PE_INLINE Float max(Float a, Float b) { return {_mm512_max_ps(a.v, b.v)}; }  // b when either is NaN
PE_INLINE Int as_int(Float a) { return {_mm512_castps_si512(a.v)}; }
PE_INLINE Float as_float(Int a) { return {_mm512_castsi512_ps(a.v)}; }
PE_INLINE Int truncate(Float a) { return {_mm512_cvttps_epi32(a.v)}; }
PE_INLINE Float convert(Int a) { return {_mm512_cvtepi32_ps(a.v)}; }

PE_INLINE float sum(Float a) {
  const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 x = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
  const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
PE_INLINE float max_of(Float a) {
  const __m256 w = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 x = _mm_max_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
  const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

PE_INLINE void transpose(Float* r) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                 odd_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    r[i].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[i + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[i + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// Appends the lanes of `a` that are set in `m` at `out`, in order; up to kWidth - 1 elements past them may be
// overwritten.
PE_INLINE int compress(Mask m, Int a, int32_t* out) {
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(m.v, a.v));
  return __builtin_popcount(m.v);
}

}  // namespace
}  // namespace pe::cpu
