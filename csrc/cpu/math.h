// SPDX-License-Identifier: Apache-2.0
// The element types of the CPU kernels and their exact conversions, one value at a time.
//
// Attention, KV writes and sampling are written once, in terms of three types that a vector header defines for one
// instruction set: Float, Int and Mask (math_generic.h, math_avx2.h, math_avx512.h). math_vector.h chooses by the flags
// that a file is compiled with and builds exp on top. Everything here has internal linkage: the same function compiled
// for two instruction sets must stay two functions.
//
// Multiply-adds are spelled out (fma, fnma), never left to the compiler, so that every path through a kernel rounds
// alike.
#pragma once
#include <cstdint>
#include <cstring>

#define PE_INLINE static inline __attribute__((always_inline))
#define PE_MEMBER inline __attribute__((always_inline))

namespace pe::cpu {
namespace {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {  // e4m3: of KV caches
  uint8_t bits;
};

PE_INLINE float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
PE_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

PE_INLINE float to_float(float x) { return x; }
PE_INLINE float to_float(BF16 x) { return bits_to_float(uint32_t{x.bits} << 16); }

// The exponent is moved by a multiplication, which also normalises subnormals; infinities and NaN get theirs by hand.
PE_INLINE float to_float(F16 x) {
  const uint32_t sign = uint32_t{x.bits} & 0x8000u, rest = uint32_t{x.bits} & 0x7fffu;
  const float magnitude = bits_to_float(rest << 13) * bits_to_float(0x77800000u);  // 2^112
  const uint32_t bits = rest >= 0x7c00u ? (rest << 13) | 0x7f800000u : float_to_bits(magnitude);
  return bits_to_float(bits | sign << 16);
}

// e4m3 has its NaN where all bits but the sign are set, and no infinities.
PE_INLINE float to_float(F8 x) {
  const uint32_t sign = uint32_t{x.bits} & 0x80u, rest = uint32_t{x.bits} & 0x7fu;
  const float magnitude = bits_to_float(rest << 20) * bits_to_float(0x7b800000u);  // 2^120
  const uint32_t bits = rest == 0x7fu ? 0x7fc00000u : float_to_bits(magnitude);
  return bits_to_float(bits | sign << 24);
}

// To nearest, ties to even; NaN stays NaN. e4m3 saturates.
PE_INLINE void from_float(float x, float* out) { *out = x; }
PE_INLINE void from_float(float x, BF16* out) {
  const uint32_t bits = float_to_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
PE_INLINE void from_float(float x, F16* out) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // below 2^-14: the addition of 0.5 shifts the bits into place and rounds them
    half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
}
PE_INLINE void from_float(float x, F8* out) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 24 & 0x80u, rest = bits & 0x7fffffffu;
  uint32_t byte;
  if (rest > 0x7f800000u) {
    byte = 0x7fu;
  } else if (rest >= 0x43e00000u) {  // 448
    byte = 0x7eu;
  } else if (rest < 0x3c800000u) {  // below 2^-6: the addition of 2^14 shifts the bits into place and rounds them
    byte = float_to_bits(bits_to_float(rest) + 16384.0f) - 0x46800000u;
  } else {
    byte = (rest - 0x3c000000u + 0x7ffffu + (rest >> 20 & 1)) >> 20;
  }
  out->bits = static_cast<uint8_t>(byte | sign);
}

}  // namespace
}  // namespace pe::cpu
