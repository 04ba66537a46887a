// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous machinery as the weight-streaming GEMM uses it: bulk tensor copies (TMA) and the warpgroup
// matrix multiply (PTX ISA, "cp.async.bulk.tensor", "wgmma"; barriers: mbarrier.cuh). All of it needs sm_90, wgmma
// sm_90a: callers guard their bodies with PE_SM90A, so nothing here is instantiated for another target or emulated.
//
// Shared memory is named by its 32-bit address: every instruction here takes that, and a ring is address arithmetic.
#pragma once
#include "cuda/common/mbarrier.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PE_SM90A 1
#endif

namespace pe::cuda::gmma {

// ---- bulk tensor copies: boxes of a tensor [boxes, rows, 64], their bytes reported to a barrier ---------------------

// What becomes of the lines in the L2: a stream is not to push out what others read again.
constexpr uint64_t kEvictNormal = 0x1000000000000000ull, kEvictFirst = 0x12f0000000000000ull;

__device__ __forceinline__ void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// As many boxes, of as many rows each, as the map says. What lies outside the tensor arrives as zeros and counts as
// bytes.
__device__ __forceinline__ void copy_boxes(SmemAddress to, const void* map, int row, int box, SmemAddress barrier,
                                           uint64_t l2_policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(0), "r"(row), "r"(box), "l"(l2_policy)
      : "memory");
}
// Into the L2 alone; nothing tells when they are there.
__device__ __forceinline__ void prefetch_boxes(const void* map, int row, int box) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(0), "r"(row),
               "r"(box)
               : "memory");
}

// The same of a tensor [boxes, 2, rows, 64]: in every box the rows of either half, one behind the other.
__device__ __forceinline__ void copy_pairs(SmemAddress to, const void* map, int row, int box, SmemAddress barrier,
                                           uint64_t l2_policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %3, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(0), "r"(row), "r"(box), "l"(l2_policy)
      : "memory");
}
__device__ __forceinline__ void prefetch_pairs(const void* map, int row, int box) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %1, %3}];" ::"l"(map), "r"(0), "r"(row),
               "r"(box)
               : "memory");
}

// ---- wgmma m64nNk16: d[64, N] (+)= a[64, 16] b[N, 16]^T in fp32, by a warpgroup of four warps -----------------------
//
// With w = the warp's place in its warpgroup, g = lane / 4, t = lane % 4, each thread holds
//   d[4 j + 0, 4 j + 1] = D[16 w + g    ][8 j + 2 t, 8 j + 2 t + 1]
//   d[4 j + 2, 4 j + 3] = D[16 w + g + 8][8 j + 2 t, 8 j + 2 t + 1]
//
// a and b lie in shared memory as the copy engine writes boxes of 64 columns with a 128-byte swizzle: rows of 128
// bytes, groups of 8 rows 1024 bytes apart and 1024-byte aligned. A descriptor names such a tile; 16 columns further is
// kStepK more.
__device__ __forceinline__ uint64_t descriptor(SmemAddress tile) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupBytes = uint64_t{1024 >> 4} << 32, kUnused = 1 << 16;
  return kSwizzle128 | kGroupBytes | kUnused | ((tile & 0x3ffff) >> 4);
}
constexpr uint64_t kStepK = 32 >> 4;

__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>  // groups that may still run
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Reads of d must not be scheduled before the wait; the compiler sees no other dependence.
template <int kSize>
__device__ __forceinline__ void pin(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// accumulate = false starts d from zero. d must not be touched between the first call and the wait.
template <typename T, int kN>
__device__ __forceinline__ void multiply(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate);

// Four registers are eight columns of d: their names in the text of the instruction, and the operands.
#define PE_NAMES_0 "%0, %1, %2, %3"
#define PE_NAMES_1 "%4, %5, %6, %7"
#define PE_NAMES_2 "%8, %9, %10, %11"
#define PE_NAMES_3 "%12, %13, %14, %15"
#define PE_NAMES_4 "%16, %17, %18, %19"
#define PE_NAMES_5 "%20, %21, %22, %23"
#define PE_NAMES_6 "%24, %25, %26, %27"
#define PE_NAMES_7 "%28, %29, %30, %31"
#define PE_NAMES_8 "%32, %33, %34, %35"
#define PE_NAMES_9 "%36, %37, %38, %39"
#define PE_NAMES_10 "%40, %41, %42, %43"
#define PE_NAMES_11 "%44, %45, %46, %47"
#define PE_NAMES_12 "%48, %49, %50, %51"
#define PE_NAMES_13 "%52, %53, %54, %55"
#define PE_FOUR(i) "+f"(d[4 * i]), "+f"(d[4 * i + 1]), "+f"(d[4 * i + 2]), "+f"(d[4 * i + 3])
#define PE_NAMES_N16 PE_NAMES_0 ", " PE_NAMES_1
#define PE_OPERANDS_N16 PE_FOUR(0), PE_FOUR(1)
#define PE_NAMES_N24 PE_NAMES_0 ", " PE_NAMES_1 ", " PE_NAMES_2
#define PE_OPERANDS_N24 PE_FOUR(0), PE_FOUR(1), PE_FOUR(2)
#define PE_NAMES_N32 PE_NAMES_0 ", " PE_NAMES_1 ", " PE_NAMES_2 ", " PE_NAMES_3
#define PE_OPERANDS_N32 PE_FOUR(0), PE_FOUR(1), PE_FOUR(2), PE_FOUR(3)
#define PE_NAMES_N48 PE_NAMES_0 ", " PE_NAMES_1 ", " PE_NAMES_2 ", " PE_NAMES_3 ", " PE_NAMES_4 ", " PE_NAMES_5
#define PE_OPERANDS_N48 PE_FOUR(0), PE_FOUR(1), PE_FOUR(2), PE_FOUR(3), PE_FOUR(4), PE_FOUR(5)
#define PE_NAMES_N64                                                                                         \
  PE_NAMES_0 ", " PE_NAMES_1 ", " PE_NAMES_2 ", " PE_NAMES_3 ", " PE_NAMES_4 ", " PE_NAMES_5 ", " PE_NAMES_6 \
             ", " PE_NAMES_7
#define PE_OPERANDS_N64 PE_FOUR(0), PE_FOUR(1), PE_FOUR(2), PE_FOUR(3), PE_FOUR(4), PE_FOUR(5), PE_FOUR(6), PE_FOUR(7)
#define PE_NAMES_N112                                                                                           \
  PE_NAMES_0 ", " PE_NAMES_1 ", " PE_NAMES_2 ", " PE_NAMES_3 ", " PE_NAMES_4 ", " PE_NAMES_5 ", " PE_NAMES_6    \
             ", " PE_NAMES_7 ", " PE_NAMES_8 ", " PE_NAMES_9 ", " PE_NAMES_10 ", " PE_NAMES_11 ", " PE_NAMES_12 \
             ", " PE_NAMES_13
#define PE_OPERANDS_N112                                                                                      \
  PE_FOUR(0), PE_FOUR(1), PE_FOUR(2), PE_FOUR(3), PE_FOUR(4), PE_FOUR(5), PE_FOUR(6), PE_FOUR(7), PE_FOUR(8), \
      PE_FOUR(9), PE_FOUR(10), PE_FOUR(11), PE_FOUR(12), PE_FOUR(13)

#define PE_WGMMA(T, TYPE, N, A, B, ACCUMULATE)                                                                 \
  template <>                                                                                                  \
  __device__ __forceinline__ void multiply<T, N>(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{ .reg .pred p;\n\tsetp.ne.b32 p, " ACCUMULATE                                               \
                 ", 0;\n\t"                                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PE_NAMES_N##N            \
                 "}, " A ", " B ", p, 1, 1, 0, 0; }"                                                           \
                 : PE_OPERANDS_N##N                                                                            \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                         \
  }
#define PE_WGMMA_BOTH(N, A, B, ACCUMULATE)    \
  PE_WGMMA(bf16, "bf16", N, A, B, ACCUMULATE) \
  PE_WGMMA(f16, "f16", N, A, B, ACCUMULATE)
PE_WGMMA_BOTH(16, "%8", "%9", "%10")
PE_WGMMA_BOTH(24, "%12", "%13", "%14")
PE_WGMMA_BOTH(32, "%16", "%17", "%18")
PE_WGMMA_BOTH(48, "%24", "%25", "%26")
PE_WGMMA_BOTH(64, "%32", "%33", "%34")
PE_WGMMA_BOTH(112, "%56", "%57", "%58")

#undef PE_NAMES_0
#undef PE_NAMES_1
#undef PE_NAMES_2
#undef PE_NAMES_3
#undef PE_NAMES_4
#undef PE_NAMES_5
#undef PE_NAMES_6
#undef PE_NAMES_7
#undef PE_NAMES_8
#undef PE_NAMES_9
#undef PE_NAMES_10
#undef PE_NAMES_11
#undef PE_NAMES_12
#undef PE_NAMES_13
#undef PE_FOUR
#undef PE_NAMES_N16
#undef PE_OPERANDS_N16
#undef PE_NAMES_N24
#undef PE_OPERANDS_N24
#undef PE_NAMES_N32
#undef PE_OPERANDS_N32
#undef PE_NAMES_N48
#undef PE_OPERANDS_N48
#undef PE_NAMES_N64
#undef PE_OPERANDS_N64
#undef PE_NAMES_N112
#undef PE_OPERANDS_N112
#undef PE_WGMMA
#undef PE_WGMMA_BOTH

}  // namespace pe::cuda::gmma
