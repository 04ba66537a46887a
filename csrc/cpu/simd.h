// SPDX-License-Identifier: Apache-2.0
// Element types of the CPU kernels, and fp32 vectors in plain C++ (the generic path and the model of simd_avx2.h and
// simd_avx512.h, which offer the same names on registers).
//
// A vector V has kWidth lanes and: zero, set1, load(T*), load(T*, count), store(T*, v), store(T*, v, count), + - * /,
// multiply_add(a, b, c) = a * b + c, exp(v), sum(v). T is float, Bf16 or F16; a store rounds to nearest even; the forms
// with a count (< kWidth) touch only that many elements and fill the other lanes with zero. Everything has internal
// linkage: see linear_blocked.h for why.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace pe::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return float_of(uint32_t{x.bits} << 16); }
inline float to_float(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  // The exponent is off by 127 - 15; multiplying puts it right and normalises a denormal.
  return float_of(sign | bits_of(float_of(magnitude << 13) * float_of((127u + 112u) << 23)));
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, Bf16* out) {
  const uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, F16* out) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, magnitude = bits_of(x) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 2^16 or more
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // a denormal: adding 0.5 leaves multiples of 2^-24, rounded, in the low bits
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

struct PlainVector {
  static constexpr int kWidth = 8;
  float lane[kWidth];

  template <typename F>
  static PlainVector each(F value) {
    PlainVector v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = value(i);
    return v;
  }

  static PlainVector zero() { return set1(0); }
  static PlainVector set1(float x) {
    return each([&](int) { return x; });
  }
  template <typename T>
  static PlainVector load(const T* p) {
    return each([&](int i) { return to_float(p[i]); });
  }
  template <typename T>
  static PlainVector load(const T* p, int64_t count) {
    return each([&](int i) { return i < count ? to_float(p[i]) : 0; });
  }
  template <typename T>
  static void store(T* p, PlainVector v, int64_t count = kWidth) {
    for (int i = 0; i < count; ++i) from_float(v.lane[i], p + i);
  }

  friend PlainVector operator+(PlainVector a, PlainVector b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  friend PlainVector operator-(PlainVector a, PlainVector b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  friend PlainVector operator*(PlainVector a, PlainVector b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  friend PlainVector operator/(PlainVector a, PlainVector b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static PlainVector multiply_add(PlainVector a, PlainVector b, PlainVector c) { return a * b + c; }
  static PlainVector exp(PlainVector v) {
    return each([&](int i) { return expf(v.lane[i]); });
  }
  static float sum(PlainVector v) {
    return ((v.lane[0] + v.lane[4]) + (v.lane[2] + v.lane[6])) + ((v.lane[1] + v.lane[5]) + (v.lane[3] + v.lane[7]));
  }
};

// e^r for |r| <= ln(2) / 2: Taylor to r^6, error below 2e-7 relative. Coefficients from the highest power down.
constexpr float kExpTaylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
constexpr float kLog2E = 1.44269504088896341f;
// ln(2) in two parts: n * kLn2High is exact for the n that occur.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExpLimit = 104;  // beyond: 0 or infinity in fp32

}  // namespace
}  // namespace pe::cpu
