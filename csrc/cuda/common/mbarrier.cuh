// SPDX-License-Identifier: Apache-2.0
// mbarrier: a barrier in shared memory, 8 bytes (PTX ISA, "mbarrier"; sm_90 as used here). Its phases 0, 1, 2, ... end
// when so many arrivals and all the bytes announced with them have come. Unlike __syncthreads, who arrives need not
// wait, and who waits for phase n (before phase n + 1 can end) need not arrive.
//
// A barrier is named by a pointer or, where a ring is address arithmetic, by its 32-bit address. On GPUs before sm_90
// nothing here does anything: callers know where they are.
#pragma once
#include "cuda/common/async_copy.cuh"

namespace pe::cuda {

// A place in a ring whose slots have barriers.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;  // of the passes through the ring
  __host__ __device__ __forceinline__ void advance() {
    if (++slot < kSlots) return;
    slot = 0;
    parity ^= 1;
  }
};

#if defined(PE_SIMT)

// What a phase still waits for, and which phase it is.
struct EmulatedBarrier {
  uint16_t count, pending;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(EmulatedBarrier) == sizeof(uint64_t));

inline void mbarrier_progress(uint64_t* barrier, int arrivals, int bytes) {
  auto& b = *reinterpret_cast<EmulatedBarrier*>(barrier);
  if (arrivals > b.pending) simt::fail("mbarrier: more arrivals than it counts");
  b.pending = static_cast<uint16_t>(b.pending - arrivals);
  b.bytes += bytes;
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.count;
  b.phase ^= 1;
}
inline void mbarrier_init(uint64_t* barrier, int count) {
  const EmulatedBarrier b{static_cast<uint16_t>(count), static_cast<uint16_t>(count), 0, 0};
  std::memcpy(barrier, &b, sizeof b);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) { mbarrier_progress(barrier, 1, 0); }
inline void mbarrier_expect(uint64_t* barrier, int bytes) { mbarrier_progress(barrier, 1, bytes); }
inline void mbarrier_wait(const uint64_t* barrier, uint32_t parity, PE_SIMT_HERE) {
  using Ready = bool (*)(const void*);
  const auto ended = [](uint32_t wanted) -> Ready {
    if (wanted == 0) return [](const void* b) { return static_cast<const EmulatedBarrier*>(b)->phase != 0; };
    return [](const void* b) { return static_cast<const EmulatedBarrier*>(b)->phase != 1; };
  };
  simt::wait_until(PE_SIMT_SITE("mbarrier wait"), ended(parity), barrier);
}

#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define PE_SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define PE_SM90_ASM(...) static_cast<void>(0)
#endif

using SmemAddress = uint32_t;

__device__ __forceinline__ void mbarrier_init(SmemAddress barrier, int count) {
  PE_SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes this thread's initialised barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
  PE_SM90_ASM("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" :: : "memory");
}
// Before the memory serves something else.
__device__ __forceinline__ void mbarrier_invalidate(SmemAddress barrier) {
  PE_SM90_ASM("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// One arrival, after this thread's earlier reads and writes.
__device__ __forceinline__ void mbarrier_arrive(SmemAddress barrier) {
  PE_SM90_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival, and `bytes` that copies are still to write before the phase may end.
__device__ __forceinline__ void mbarrier_expect(SmemAddress barrier, int bytes) {
  PE_SM90_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns once the phase of this parity has ended. The first phase has parity 0; the one before it counts as ended.
__device__ __forceinline__ void mbarrier_wait(SmemAddress barrier, uint32_t parity) {
  PE_SM90_ASM(
      "{ .reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity) : "memory");
}

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int count) {
  mbarrier_init(smem_address(barrier), count);
}
__device__ __forceinline__ void mbarrier_invalidate(uint64_t* barrier) { mbarrier_invalidate(smem_address(barrier)); }
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) { mbarrier_arrive(smem_address(barrier)); }
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, int bytes) {
  mbarrier_expect(smem_address(barrier), bytes);
}
__device__ __forceinline__ void mbarrier_wait(const uint64_t* barrier, uint32_t parity) {
  mbarrier_wait(smem_address(barrier), parity);
}

#endif

}  // namespace pe::cuda
