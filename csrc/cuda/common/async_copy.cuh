// SPDX-License-Identifier: Apache-2.0
// cp.async: 16 bytes from global to shared memory without passing through registers (PTX ISA, "cp.async"; sm_80 up).
//
// A thread issues copies, closes them into a group with commit, and waits until at most N of its groups are still on
// their way. Its own data is then visible to itself; __syncthreads makes it visible to the block.
#pragma once
#include "cuda/common/device.cuh"

namespace pe::cuda {

// How much of the surroundings the L2 fetches along. kL2_128 suits rows that are read to their end anyway.
enum class L2Fetch { kNone, kL2_128, kL2_256 };

#if defined(PE_SIMT)

template <L2Fetch = L2Fetch::kL2_128>
inline void cp_async_16(void* smem, const void* global) {
  simt::cp_async(smem, global, 16, 16);
}
template <L2Fetch = L2Fetch::kL2_128>
inline void cp_async_16_zfill(void* smem, const void* global, bool valid) {
  simt::cp_async(smem, global, 16, valid ? 16 : 0);
}
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int kPending>
inline void cp_async_wait() {
  simt::cp_async_wait(kPending);
}

#else

__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Past the L1 (cg): what is staged in shared memory once is not read again through the L1.
template <L2Fetch kFetch = L2Fetch::kL2_128>
__device__ __forceinline__ void cp_async_16(void* smem, const void* global) {
  const uint32_t dst = smem_address(smem);
  if constexpr (kFetch == L2Fetch::kNone) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(global) : "memory");
  } else if constexpr (kFetch == L2Fetch::kL2_128) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(dst), "l"(global) : "memory");
  }
}

// When not valid, writes 16 zero bytes and reads nothing; `global` must still be an address inside the allocation.
template <L2Fetch kFetch = L2Fetch::kL2_128>
__device__ __forceinline__ void cp_async_16_zfill(void* smem, const void* global, bool valid) {
  const uint32_t dst = smem_address(smem);
  const int bytes = valid ? 16 : 0;
  if constexpr (kFetch == L2Fetch::kNone) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(global), "r"(bytes) : "memory");
  } else if constexpr (kFetch == L2Fetch::kL2_128) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(dst), "l"(global), "r"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>  // groups that may still be on their way
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace pe::cuda
