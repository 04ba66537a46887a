// SPDX-License-Identifier: Apache-2.0
// Reductions inside one warp. Butterflies, so that every lane ends with the same bits and the order of the sum is fixed
// by the width alone: lanes whose indices differ in one bit are added, from the highest bit down.
#pragma once
#include "cuda/common/device.cuh"

namespace pe::cuda {

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Reduces over each aligned group of kWidth lanes (a power of two); all 32 lanes of the warp must call.
template <int kWidth = kWarpSize, typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T x, Op op) {
  static_assert(kWidth >= 1 && kWidth <= kWarpSize && (kWidth & (kWidth - 1)) == 0, "a power of two up to 32");
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(kFullMask, x, offset));
  return x;
}
template <int kWidth = kWarpSize, typename T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce<kWidth>(x, Sum{});
}
template <int kWidth = kWarpSize, typename T>
__device__ __forceinline__ T warp_max(T x) {
  return warp_reduce<kWidth>(x, Max{});
}
template <int kWidth = kWarpSize, typename T>
__device__ __forceinline__ T warp_min(T x) {
  return warp_reduce<kWidth>(x, Min{});
}

// The warp takes the next number of a counter.
__device__ __forceinline__ int take_ticket(uint32_t* counter) {
  uint32_t ticket = 0;
  if (lane_id() == 0) ticket = atomicAdd(counter, 1u);
  return static_cast<int>(__shfl_sync(kFullMask, ticket, 0));
}

// Lane i gets x[0] + ... + x[i].
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T x) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const T below = __shfl_up_sync(kFullMask, x, offset);
    if (lane_id() >= offset) x += below;
  }
  return x;
}

}  // namespace pe::cuda
