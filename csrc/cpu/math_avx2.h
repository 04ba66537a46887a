// SPDX-License-Identifier: Apache-2.0
// Float, Int and Mask of 8 lanes: AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include "math.h"

namespace pe::cpu {
namespace {

struct Mask {
  __m256i v;
  PE_MEMBER unsigned bits() const { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(v))); }
};
PE_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_si256(a.v, b.v)}; }
PE_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_si256(a.v, b.v)}; }
PE_INLINE Mask operator~(Mask a) { return {_mm256_xor_si256(a.v, _mm256_set1_epi32(-1))}; }

struct Int {
  __m256i v;
  PE_MEMBER static Int splat(int32_t x) { return {_mm256_set1_epi32(x)}; }
  PE_MEMBER static Int iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
  PE_MEMBER static Int load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  PE_MEMBER void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
PE_INLINE Int operator+(Int a, Int b) { return {_mm256_add_epi32(a.v, b.v)}; }
PE_INLINE Int operator*(Int a, Int b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
PE_INLINE Int operator^(Int a, Int b) { return {_mm256_xor_si256(a.v, b.v)}; }
PE_INLINE Int operator~(Int a) { return a ^ Int::splat(-1); }
template <int kBits>
PE_INLINE Int shift_left(Int a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
PE_INLINE Int shift_right(Int a) {  // zeros come in
  return {_mm256_srli_epi32(a.v, kBits)};
}
PE_INLINE Mask less(Int a, Int b) { return {_mm256_cmpgt_epi32(b.v, a.v)}; }
PE_INLINE Int select(Mask m, Int a, Int b) { return {_mm256_blendv_epi8(b.v, a.v, m.v)}; }

struct Float {
  static constexpr int kWidth = 8;
  static constexpr int kRows = 6, kColumns = 2;  // accumulators of a register block: 12 of 16 registers
  __m256 v;

  PE_MEMBER static Float splat(float x) { return {_mm256_set1_ps(x)}; }
  PE_MEMBER static Float load(const float* p) { return {_mm256_loadu_ps(p)}; }
  PE_MEMBER static Float load(const BF16* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  PE_MEMBER static Float load(const F16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  PE_MEMBER static Float load(const F8* p) {
    const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i rest = _mm256_and_si256(x, _mm256_set1_epi32(0x7f));
    const __m256 magnitude = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(rest, 20)), _mm256_set1_ps(0x1p120f));
    const __m256i nan =
        _mm256_and_si256(_mm256_cmpeq_epi32(rest, _mm256_set1_epi32(0x7f)), _mm256_set1_epi32(0x7fc00000));
    const __m256i sign = _mm256_slli_epi32(_mm256_andnot_si256(rest, x), 24);
    return {_mm256_or_ps(magnitude, _mm256_castsi256_ps(_mm256_or_si256(nan, sign)))};
  }
  PE_MEMBER void store(float* p) const { _mm256_storeu_ps(p, v); }
  PE_MEMBER void store(F8* p) const {
    float lanes[kWidth];
    store(lanes);
    for (int i = 0; i < kWidth; ++i) from_float(lanes[i], p + i);
  }
  PE_MEMBER void store(BF16* p) const {
    const __m256i x = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  PE_MEMBER void store(F16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  PE_MEMBER float first() const { return _mm256_cvtss_f32(v); }
  // Of what is left of a row, n elements: all lanes, because n is a positive multiple of 8.
  template <typename T>
  PE_MEMBER static Float load(const T* p, int64_t) {
    return load(p);
  }
  template <typename T>
  PE_MEMBER void store(T* p, int64_t) const {
    store(p);
  }
};
PE_INLINE Float operator+(Float a, Float b) { return {_mm256_add_ps(a.v, b.v)}; }
PE_INLINE Float operator-(Float a, Float b) { return {_mm256_sub_ps(a.v, b.v)}; }
PE_INLINE Float operator*(Float a, Float b) { return {_mm256_mul_ps(a.v, b.v)}; }
PE_INLINE Float operator/(Float a, Float b) { return {_mm256_div_ps(a.v, b.v)}; }
PE_INLINE Float fma(Float a, Float b, Float c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
PE_INLINE Float fnma(Float a, Float b, Float c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
PE_INLINE Mask less(Float a, Float b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))}; }
PE_INLINE Mask at_most(Float a, Float b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ))}; }
PE_INLINE Float select(Mask m, Float a, Float b) { return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(m.v))}; }
PE_INLINE Float max(Float a, Float b) { return {_mm256_max_ps(a.v, b.v)}; }  // b when either is NaN
PE_INLINE Int as_int(Float a) { return {_mm256_castps_si256(a.v)}; }
PE_INLINE Float as_float(Int a) { return {_mm256_castsi256_ps(a.v)}; }
PE_INLINE Int truncate(Float a) { return {_mm256_cvttps_epi32(a.v)}; }
PE_INLINE Float convert(Int a) { return {_mm256_cvtepi32_ps(a.v)}; }

PE_INLINE float sum(Float a) {
  const __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
PE_INLINE float max_of(Float a) {
  const __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

PE_INLINE void transpose(Float* r) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

// Appends the lanes of `a` that are set in `m` at `out`, in order; up to kWidth - 1 elements past them may be
// overwritten.
PE_INLINE int compress(Mask m, Int a, int32_t* out) {
  int32_t lanes[8];
  a.store(lanes);
  int n = 0;
  for (unsigned bits = m.bits(); bits != 0; bits &= bits - 1) out[n++] = lanes[__builtin_ctz(bits)];
  return n;
}

}  // namespace
}  // namespace pe::cpu
