// SPDX-License-Identifier: Apache-2.0
// The weight-streaming kernels as the host sees them; their bodies, which take seconds to compile, are in
// stream_kernel.cuh.
#pragma once
#include <cuda.h>

#include "cuda/common/device.cuh"
#include "cuda/gemm/stream_plan.h"

namespace pe::cuda::stream {

struct Args {
  void* out;
  const void* bias;
  int64_t out_stride;
  int m, n, num_boxes;     // n: features of the result; boxes of 64 k per tile
  int depth;               // boxes per stage
  int num_stages, x_rows;  // of the ring
  int num_prefetched;      // stages behind the ring that are asked into the L2 before the predecessor has ended
  bool f32_out;
};

// Tensor maps of the weights, [k / 64, n, 64] or, of pairs, [k / 64, 2, n, 64], and of x.
using Kernel = void (*)(CUtensorMap, CUtensorMap, Args);
template <typename T, bool kPairs>
Kernel kernel_for(int tile, int groups);  // null when there is none

constexpr int kGroupThreads = 4 * kWarpSize;
constexpr int threads_of(int groups) { return groups * kGroupThreads + kWarpSize; }

}  // namespace pe::cuda::stream
