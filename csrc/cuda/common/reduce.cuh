// SPDX-License-Identifier: Apache-2.0
// Reductions over one block of kThreads threads (1-D, a multiple of 32): a butterfly in each warp, then one over the
// warps' results, so the order of a sum depends on kThreads alone. Every thread gets the result, with the same bits.
//
// `scratch` is shared memory for one value per warp. Each call ends behind its only barrier: before the same scratch is
// used a second time, the block must have passed another barrier (or use a second scratch).
#pragma once
#include "cuda/common/warp.cuh"

namespace pe::cuda {

template <int kThreads, typename T, typename Op>
__device__ __forceinline__ T block_reduce(T x, Op op, T* scratch) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= 1024, "whole warps");
  constexpr int kWarps = kThreads / kWarpSize;
  x = warp_reduce(x, op);
  if constexpr (kWarps == 1) return x;
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  T result = scratch[0];
  if constexpr ((kWarps & (kWarps - 1)) == 0) {
    result = warp_reduce<kWarps>(scratch[lane_id() % kWarps], op);
  } else {
#pragma unroll
    for (int i = 1; i < kWarps; ++i) result = op(result, scratch[i]);
  }
  return result;
}
template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  return block_reduce<kThreads>(x, Sum{}, scratch);
}
template <int kThreads, typename T>
__device__ __forceinline__ T block_max(T x, T* scratch) {
  return block_reduce<kThreads>(x, Max{}, scratch);
}

// Thread i gets x[0] + ... + x[i - 1]; *total the sum of all. The same rule for scratch.
template <int kThreads, typename T>
__device__ __forceinline__ T block_exclusive_sum(T x, T* scratch, T* total) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= 1024, "whole warps");
  constexpr int kWarps = kThreads / kWarpSize;
  const T inclusive = warp_inclusive_sum(x);
  if (lane_id() == kWarpSize - 1) scratch[warp_id()] = inclusive;
  __syncthreads();
  T before = 0, all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp_id()) before = all;
    all += scratch[i];
  }
  *total = all;
  return before + inclusive - x;
}

}  // namespace pe::cuda
