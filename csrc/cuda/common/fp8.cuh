// SPDX-License-Identifier: Apache-2.0
// float8 e4m3 (sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities; NaN is 0x7f), as KV caches hold it.
// Narrowing rounds to nearest even and saturates at 448; widening to f16 or bf16 is exact. NaN stays NaN both ways.
//
// sm_89 and up convert pairs by one instruction (PTX ISA, "cvt"); for older GPUs and the emulator the same in integers.
#pragma once
#include <type_traits>

#include "cuda/common/vec.cuh"

namespace pe::cuda {

struct fp8 {
  uint8_t bits;
};

// The nearest e4m3.
__device__ __forceinline__ uint32_t narrow_fp8(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7fu;
  if (rest >= 0x43e00000u) return sign | 0x7eu;  // 448
  // Below 2^-6 the addition of 2^14 shifts the bits into place and rounds them.
  if (rest < 0x3c800000u) return sign | (__float_as_uint(__uint_as_float(rest) + 16384.0f) - 0x46800000u);
  return sign | (rest - 0x3c000000u + 0x7ffffu + (rest >> 20 & 1)) >> 20;
}

// Two of them, `lo` in the low byte.
__device__ __forceinline__ uint32_t narrow2_fp8(float lo, float hi) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(hi), "f"(lo));
  return pair;
#else
  return narrow_fp8(lo) | narrow_fp8(hi) << 8;
#endif
}
__device__ __forceinline__ uint32_t narrow4_fp8(float a, float b, float c, float d) {
  return narrow2_fp8(a, b) | narrow2_fp8(c, d) << 16;
}

#if defined(PE_SIMT)

inline float to_float(fp8 x) {
  const int exponent = x.bits >> 3 & 15, mantissa = x.bits & 7;
  const float magnitude = exponent == 0 ? ldexpf(static_cast<float>(mantissa), -9)
                                        : ldexpf(static_cast<float>(8 + mantissa), exponent - 10);
  return copysignf((x.bits & 0x7f) == 0x7f ? NAN : magnitude, (x.bits & 0x80) != 0 ? -1.0f : 1.0f);
}

template <typename T>
inline void widen4(uint32_t four, uint32_t& lo, uint32_t& hi) {
  float x[4];
  for (int i = 0; i < 4; ++i) x[i] = to_float(fp8{static_cast<uint8_t>(four >> 8 * i)});
  lo = pack2<T>(x[0], x[1]);
  hi = pack2<T>(x[2], x[3]);
}

#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890

__device__ __forceinline__ void widen4_f16(uint32_t four, uint32_t& lo, uint32_t& hi) {
  asm("{\n"
      ".reg .b16 l, h;\n"
      "mov.b32 {l, h}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, l;\n"
      "cvt.rn.f16x2.e4m3x2 %1, h;\n"
      "}"
      : "=r"(lo), "=r"(hi)
      : "r"(four));
}

// Four elements, the first in the low byte, to two pairs.
template <typename T>
__device__ __forceinline__ void widen4(uint32_t four, uint32_t& lo, uint32_t& hi) {
  widen4_f16(four, lo, hi);
  if constexpr (std::is_same_v<T, bf16>) {  // by way of fp32: f16's range is the smaller, so nothing is lost
    const float2 a = unpack2<f16>(lo), b = unpack2<f16>(hi);
    lo = pack2<bf16>(a.x, a.y);
    hi = pack2<bf16>(b.x, b.y);
  }
}

#else

// Exponent and mantissa are moved to where T has theirs, subnormals included; a multiplication by a power of two puts
// the bias right.
template <typename T>
__device__ __forceinline__ uint32_t widen_halves(uint32_t halves) {  // each half has its element in the upper byte
  if constexpr (std::is_same_v<T, f16>) {
    const uint32_t moved = (halves & 0x80008000u) | (halves >> 1 & 0x3f803f80u);
    const __half2 x = __hmul2(*reinterpret_cast<const __half2*>(&moved), __float2half2_rn(256.0f));
    return *reinterpret_cast<const uint32_t*>(&x);
  } else {
    const uint32_t moved = (halves & 0x80008000u) | (halves >> 4 & 0x07f007f0u);
    const __nv_bfloat162 x = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&moved), __float2bfloat162_rn(0x1p120f));
    return *reinterpret_cast<const uint32_t*>(&x);
  }
}

template <typename T>
__device__ __forceinline__ void widen4(uint32_t four, uint32_t& lo, uint32_t& hi) {
  lo = widen_halves<T>(__byte_perm(four, 0, 0x1404));
  hi = widen_halves<T>(__byte_perm(four, 0, 0x3424));
  const uint32_t nan = ((four & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;  // bit 7 of each NaN's byte
  if (nan != 0) {
    lo |= (nan & 0x80u ? 0x7fffu : 0u) | (nan & 0x8000u ? 0x7fff0000u : 0u);
    hi |= (nan & 0x800000u ? 0x7fffu : 0u) | (nan & 0x80000000u ? 0x7fff0000u : 0u);
  }
}

#endif
#endif

}  // namespace pe::cuda
