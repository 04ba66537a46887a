// SPDX-License-Identifier: Apache-2.0
// Warpgroup-wide matrix multiply m64nNk16 with fp32 accumulators (PTX ISA, "wgmma.mma_async"; sm_90a alone).
// PE_WGMMA is defined where all this exists: in device code for sm_90a.
// Everywhere else (sm_80, compute_90 PTX, the emulator) kernels take mma.cuh, which gives the same bits when k ascends
// in steps of 16.
//
// A warpgroup is 4 warps from a multiple of 4 on; all of its lanes call. Warp i holds rows 16 i .. 16 i + 15 of the 64,
// and inside these 16 rows A fragments and accumulators lie in the lanes exactly as mma.cuh says for m16n8k16.
//
// Multiplies run by themselves. From wgmma_fence until the wgmma_wait that covers them, nobody may touch the registers
// they are given, and the compiler does not know: hold() after the wait makes every later use depend on it.
//
// Operands in shared memory: rows of 64 elements = 128 bytes, the 16-byte vector v of row r in place v ^ r % 8 of its
// row (the 128-byte swizzle, which works on address bits and so wants tiles to begin at multiples of 1024 bytes). Eight
// rows are an atom of 1024 bytes; a block is 64 columns of a matrix, its atoms one after another. A matrix is one or
// several blocks. In the descriptor (PTX ISA, "Matrix Descriptor"), in units of 16 bytes:
//   bits 0-13   address
//   bits 16-29  "leading" offset: what k-major operands do not need; of mn-major ones, from one block to the next
//   bits 32-45  "stride" offset: from an atom to the next one in its block, 1024 bytes either way
//   bits 62-63  1: 128-byte swizzle
// k-major (rows are n, columns are k: the keys of attention): one multiply reads 16 of a block's 64 columns, 32
// bytes further for each step of k; the hardware applies the swizzle to the address it ends up with.
// mn-major (rows are k, columns are n: the values): one multiply reads 16 rows = two atoms of every block,
// 2048 bytes further for each step of k.
#pragma once
#include <type_traits>

#include "cuda/common/mbarrier.cuh"
#include "cuda/common/vec.cuh"

namespace pe::cuda {

constexpr int kWarpgroupWarps = 4;
constexpr int kSwizzleRowBytes = 128, kSwizzleAtomBytes = 8 * kSwizzleRowBytes, kSwizzleColumns = 64;

#if !defined(PE_SIMT) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PE_WGMMA

// The low half of a descriptor; the high half (stride, swizzle) is always the same and joins it at the multiply, so
// that one register per operand goes into each. `block_bytes` is the distance of blocks; k-major operands do not use
// it. Shared memory ends below 2^18 bytes: what is added to the address never leaves its 14 bits.
constexpr uint32_t kDescriptorHigh = 1u << 30 | kSwizzleAtomBytes >> 4;
__device__ __forceinline__ uint32_t matrix_descriptor(const void* tile, int block_bytes) {
  return static_cast<uint32_t>(block_bytes >> 4) << 16 | (smem_address(tile) & 0x3ffff) >> 4;
}
__device__ __forceinline__ uint32_t advance(uint32_t descriptor, int bytes) {
  return descriptor + static_cast<uint32_t>(bytes >> 4);
}

// Before a warpgroup's first multiply that uses registers written since the last one.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>  // groups that may still run
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kTiles>
__device__ __forceinline__ void hold(float (&registers)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(registers[i][e])::"memory");
  }
}
template <int kTiles>
__device__ __forceinline__ void hold(uint32_t (&registers)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(registers[i][e])::"memory");
  }
}

// What is computed before a wait stays before it: the wait depends on no register, so the compiler would move it up,
// over all the arithmetic that was to run under the multiplies. It does not move it over a branch. x is never negative.
// (Not a trap: one keeps ptxas from giving the registers that setmaxnreg has taken, and it serialises the multiplies.)
__device__ __forceinline__ void compute_before_wait(float x) {
  if (x < 0) asm volatile("nanosleep.u32 0;" ::: "memory");
}

// Shared memory written by this thread (copies that it has waited for included) becomes visible to later multiplies of
// whoever it then meets at a barrier.
__device__ __forceinline__ void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define PE_ACC4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define PE_ACC16(c, j) PE_ACC4(c, j), PE_ACC4(c, j + 1), PE_ACC4(c, j + 2), PE_ACC4(c, j + 3)
#define PE_ACC32(c) PE_ACC16(c, 0), PE_ACC16(c, 4)
#define PE_ACC64(c) PE_ACC32(c), PE_ACC16(c, 8), PE_ACC16(c, 12)
#define PE_REGS32                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PE_REGS64                                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// c = a b, or with `add` c += a b. a is 64 x 16 in registers, b 16 x 64 or 16 x 128 in shared memory.
#define PE_WGMMA_64(type, transposed)                                            \
  asm volatile(                                                                  \
      "{ .reg .pred add; .reg .b64 b;\n"                                         \
      "setp.ne.b32 add, %37, 0; mov.b64 b, {%36, %38};\n"                        \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type "\n" PE_REGS32 \
      ", {%32, %33, %34, %35}, b, add, 1, 1, " transposed "; }"                  \
      : PE_ACC32(c)                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(add)), "n"(kDescriptorHigh))
#define PE_WGMMA_128(type, transposed)                                            \
  asm volatile(                                                                   \
      "{ .reg .pred add; .reg .b64 b;\n"                                          \
      "setp.ne.b32 add, %69, 0; mov.b64 b, {%68, %70};\n"                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type "\n" PE_REGS64 \
      ", {%64, %65, %66, %67}, b, add, 1, 1, " transposed "; }"                   \
      : PE_ACC64(c)                                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(add)), "n"(kDescriptorHigh))
template <typename T>
__device__ __forceinline__ void wgmma_k_major(float (&c)[8][4], const uint32_t (&a)[4], uint32_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>) {
    PE_WGMMA_64("bf16", "0");
  } else {
    PE_WGMMA_64("f16", "0");
  }
}
template <typename T>
__device__ __forceinline__ void wgmma_mn_major(float (&c)[8][4], const uint32_t (&a)[4], uint32_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>) {
    PE_WGMMA_64("bf16", "1");
  } else {
    PE_WGMMA_64("f16", "1");
  }
}
template <typename T>
__device__ __forceinline__ void wgmma_mn_major(float (&c)[16][4], const uint32_t (&a)[4], uint32_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>) {
    PE_WGMMA_128("bf16", "1");
  } else {
    PE_WGMMA_128("f16", "1");
  }
}

#endif

}  // namespace pe::cuda
