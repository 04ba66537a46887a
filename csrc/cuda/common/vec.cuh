// SPDX-License-Identifier: Apache-2.0
// 16 bytes at a time: the widest access one thread makes, and the unit in which all our kernels move memory.
// A vector is a uint4 in flight and kVec<T> floats while it is computed on; the rounding back to T is the only one.
#pragma once
#include <utility>

#include "cuda/common/device.cuh"

namespace pe::cuda {

template <typename T>
constexpr int kVec = 16 / static_cast<int>(sizeof(T));  // elements of T in one vector

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);  // to nearest even
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two 16-bit floats in one register, `lo` in the low half: the form in which mma fragments and vectors hold them.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <>
__device__ __forceinline__ uint32_t pack2<f16>(float lo, float hi) {
  const __half2 h = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&h);
}
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float lo, float hi) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&h);
}

template <typename T>
__device__ __forceinline__ float2 unpack2(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack2<f16>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ __forceinline__ float2 unpack2<bf16>(uint32_t pair) {  // a bf16 is the upper half of a float
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <typename T>
__device__ __forceinline__ void unpack(const uint4& v, float (&x)[kVec<T>]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack2<T>(words[i]);
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&x)[kVec<T>]) {
  if constexpr (sizeof(T) == 4) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  } else {
    return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
  }
}

// p is 16-byte aligned. load_once is for what nobody reads again: it leaves the L1 and L2 to the others.
__device__ __forceinline__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
#if defined(PE_SIMT)
__device__ __forceinline__ uint4 load16_once(const void* p) { return load16(p); }
__device__ __forceinline__ void prefetch(const void*) {}
#else
// The line into the L2. Unlike a load it stays before a wait_for_predecessor that follows.
__device__ __forceinline__ void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}
__device__ __forceinline__ uint4 load16_once(const void* p) {  // __ldcs of older toolkits may move over a wait
  uint4 v;
  asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
#endif
__device__ __forceinline__ uint4 load16_const(const void* p) { return __ldg(static_cast<const uint4*>(p)); }
__device__ __forceinline__ void store16(void* p, const uint4& v) { *static_cast<uint4*>(p) = v; }

// Host side: calls body(T{}) with the element type that dtype names.
template <typename Body>
void dispatch_dtype(const char* op, DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kF16:
      return body(f16{});
    case DType::kBF16:
      return body(bf16{});
    case DType::kF8E4M3:
      break;  // of caches alone
  }
  throw_error(op, "dtype " + std::to_string(static_cast<int>(dtype)) + " unsupported (have f32, f16, bf16)");
}

// Host side: the vector kernels address whole 16-byte vectors; says which argument breaks that.
inline void check_aligned16(const char* op, const char* name, const void* p, int64_t stride, DType dtype) {
  PE_CHECK(op, reinterpret_cast<uintptr_t>(p) % 16 == 0, std::string(name) + " must be 16-byte aligned");
  PE_CHECK(op, stride * static_cast<int64_t>(size_of(dtype)) % 16 == 0,
           std::string(name) + "_stride must be a multiple of 16 bytes, got " + std::to_string(stride) +
               " elements of " + name_of(dtype));
}

}  // namespace pe::cuda
