// SPDX-License-Identifier: Apache-2.0
// Parts of a block that go separate ways (PTX ISA, "bar", "setmaxnreg"; registers move on sm_90a alone).
#pragma once
#include "cuda/common/device.cuh"

namespace pe::cuda {

// A barrier for kThreads threads of the block, whole warps; 0 is that of __syncthreads. In the emulator a block has no
// others.
template <int kId, int kThreads>
__device__ __forceinline__ void named_barrier() {
#if defined(PE_SIMT)
  __syncthreads();
#else
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
#endif
}

// A warpgroup's registers per thread, from where the kernel began with kBefore: those that are given up first are there
// for others to take. All warps of the warpgroup call.
template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

}  // namespace pe::cuda
