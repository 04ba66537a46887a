// SPDX-License-Identifier: Apache-2.0
// The one header through which kernels see CUDA. Under nvcc it is CUDA itself; under PE_SIMT it is the CPU emulator of
// csrc/simt, so that the same .cu file is compiled by g++ and its indices, barriers and fragments are tested on the
// CPU.
//
// Three things differ from plain CUDA, so that both compilers read the same text:
//   * dynamic shared memory is taken with PE_DYNAMIC_SMEM(type, name), 1024-byte aligned (128 when emulated);
//   * kernels are started with pe::cuda::launch (launch.cuh), never with <<<>>>;
//   * inline PTX lives in this folder only, each function with its emulator twin beside it.
#pragma once
#include "pe/core.h"

#if defined(PE_SIMT)
#include "simt/simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define PE_DYNAMIC_SMEM(type, name)                                  \
  extern __shared__ __align__(1024) unsigned char pe_dynamic_smem[]; \
  type* const name = reinterpret_cast<type*>(pe_dynamic_smem)
#endif

namespace pe::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) & (kWarpSize - 1); }  // 1-D blocks
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarpSize; }

}  // namespace pe::cuda
