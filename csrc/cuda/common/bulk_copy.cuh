// SPDX-License-Identifier: Apache-2.0
// Boxes of a paged cache on their way to shared memory by the copy engine (PTX ISA, "cp.async.bulk.tensor", "mbarrier";
// sm_90 and up), with the barriers that they report to. One thread asks for a box, whatever its size: a warp spends an
// instruction on 4 KiB where cp.async takes eight and their addresses.
//
// The box that all this is about: 16 tokens of one head of one block, all of head_dim, as blocks of 64 columns:
//   [head_dim / 64][16 rows][128 bytes], the 16-byte vector v of row r in place v ^ r % 8 of its row
// (the 128-byte swizzle: the 8 rows that one ldmatrix phase reads lie in 8 different bank groups). The hardware
// swizzles address bits, so boxes begin at multiples of 1024 bytes.
#pragma once
#include "cuda/common/async_copy.cuh"

#if !defined(PE_SIMT)
#include <cuda.h>
#endif

namespace pe::cuda {

constexpr int kBoxRowBytes = 128, kBoxColumns = 64, kBoxTokens = 16, kBoxAlign = 1024;
constexpr int box_bytes(int head_dim) { return kBoxTokens * head_dim * 2; }

#if defined(PE_SIMT)

// What the driver encodes on a GPU.
struct BoxMap {
  const unsigned char* base;
  int64_t token_stride, head_stride, block_stride;  // bytes
  int num_blocks, head_dim;
};
inline void prefetch_map(const BoxMap*) {}

// What a phase still waits for, and which phase it is.
struct EmulatedBarrier {
  uint16_t count, pending;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(EmulatedBarrier) == sizeof(uint64_t));
inline void bulk_progress(uint64_t* barrier, int arrivals, int bytes) {
  auto& b = *reinterpret_cast<EmulatedBarrier*>(barrier);
  if (arrivals > b.pending) simt::fail("mbarrier: more arrivals than it counts");
  b.pending = static_cast<uint16_t>(b.pending - arrivals);
  b.bytes += bytes;
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.count;
  b.phase ^= 1;
}
inline void bulk_barrier_init(uint64_t* barrier, int count) {
  const EmulatedBarrier b{static_cast<uint16_t>(count), static_cast<uint16_t>(count), 0, 0};
  std::memcpy(barrier, &b, sizeof b);
}
inline void bulk_barrier_fence() {}
inline void bulk_fence_before_reuse() {}
inline void bulk_arrive(uint64_t* barrier) { bulk_progress(barrier, 1, 0); }
inline void bulk_expect(uint64_t* barrier, int bytes) { bulk_progress(barrier, 1, bytes); }
inline void bulk_wait(const uint64_t* barrier, uint32_t parity, PE_SIMT_HERE) {
  using Ready = bool (*)(const void*);
  const auto ended = [](uint32_t wanted) -> Ready {
    if (wanted == 0) return [](const void* b) { return static_cast<const EmulatedBarrier*>(b)->phase != 0; };
    return [](const void* b) { return static_cast<const EmulatedBarrier*>(b)->phase != 1; };
  };
  simt::wait_until(PE_SIMT_SITE("mbarrier wait"), ended(parity), barrier);
}
inline void copy_box(void* to, const BoxMap* map, int token, int head, int block, uint64_t* barrier) {
  if (block < 0 || block >= map->num_blocks) simt::fail("copy_box: no block " + std::to_string(block));
  for (int row = 0; row < kBoxTokens; ++row) {
    const unsigned char* from =
        map->base + block * map->block_stride + head * map->head_stride + (token + row) * map->token_stride;
    for (int vector = 0; vector < map->head_dim / 8; ++vector) {
      unsigned char* place = static_cast<unsigned char*>(to) + vector / 8 * kBoxTokens * kBoxRowBytes;
      std::memcpy(place + row * kBoxRowBytes + (vector % 8 ^ row % 8) * 16, from + vector * 16, 16);
    }
  }
  bulk_progress(barrier, 0, -box_bytes(map->head_dim));
}

#else

using BoxMap = CUtensorMap;  // a kernel takes it as a const __grid_constant__ parameter

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define PE_BULK_COPY
#endif

__device__ __forceinline__ void prefetch_map(const BoxMap* map) {
#if defined(PE_BULK_COPY)
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}
// A barrier whose phases end with `count` arrivals and all the bytes announced with them.
__device__ __forceinline__ void bulk_barrier_init(uint64_t* barrier, int count) {
#if defined(PE_BULK_COPY)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(count) : "memory");
#endif
}
// Makes this thread's initialised barriers visible to the copy engine.
__device__ __forceinline__ void bulk_barrier_fence() {
#if defined(PE_BULK_COPY)
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Between plain stores to shared memory and a copy to the same place.
__device__ __forceinline__ void bulk_fence_before_reuse() {
#if defined(PE_BULK_COPY)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// One arrival, after this thread's earlier reads and writes.
__device__ __forceinline__ void bulk_arrive(uint64_t* barrier) {
#if defined(PE_BULK_COPY)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
#endif
}
// One arrival, and `bytes` that copies are still to write before the phase may end.
__device__ __forceinline__ void bulk_expect(uint64_t* barrier, int bytes) {
#if defined(PE_BULK_COPY)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
// Returns once the phase of this parity has ended. The first phase has parity 0; the one before it counts as ended.
__device__ __forceinline__ void bulk_wait(const uint64_t* barrier, uint32_t parity) {
#if defined(PE_BULK_COPY)
  asm volatile(
      "{ .reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again; }" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}
// Tokens [token, token + 16) of one head of one physical block. A block that does not exist arrives as zeros.
__device__ __forceinline__ void copy_box(void* to, const BoxMap* map, int token, int head, int block,
                                         uint64_t* barrier) {
#if defined(PE_BULK_COPY)
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %3, %5, %6}], "
      "[%2];" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(0), "r"(token), "r"(head), "r"(block)
      : "memory");
#endif
}

#endif

}  // namespace pe::cuda
