// SPDX-License-Identifier: Apache-2.0
// Copy-on-write: whole blocks duplicated inside one arena.
// pairs[N, 2] (src, dst; dst < 0: nothing) over num_parts parts of an arena; all sizes multiples of 16 bytes
// grid (pairs, parts) · block 256, 4 vectors of 16 bytes in flight per thread
// traffic: 2 * pairs * parts * block_bytes -> HBM-bound
// floor: one block of 16 tokens of llama31-8b (64 parts of 32 KiB): 4.2 MB = 1.4 us at 3.0 TB/s; not yet measured
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "pe/kv_cache.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "copy_blocks";
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) copy_blocks_kernel(CopyBlocksParams p) {
  const int32_t src = p.pairs[2 * int64_t{blockIdx.x}], dst = p.pairs[2 * int64_t{blockIdx.x} + 1];
  if (dst < 0) return;
  char* const part = static_cast<char*>(p.arena) + int64_t{blockIdx.y} * p.part_stride_bytes;
  const char* const from = part + src * p.block_stride_bytes;
  char* const to = part + dst * p.block_stride_bytes;
#pragma unroll 4
  for (int64_t i = 16 * int64_t{threadIdx.x}; i < p.block_bytes; i += 16 * kThreads) {
    store16(to + i, load16_const(from + i));  // sources and destinations are disjoint
  }
}

}  // namespace

void copy_blocks(const CopyBlocksParams& p, Stream stream) {
  PE_CHECK(kOp, p.block_bytes % 16 == 0 && p.block_stride_bytes % 16 == 0 && p.part_stride_bytes % 16 == 0,
           "sizes must be multiples of 16 bytes, got block " + std::to_string(p.block_bytes) + ", block stride " +
               std::to_string(p.block_stride_bytes) + ", part stride " + std::to_string(p.part_stride_bytes));
  PE_CHECK(kOp, p.num_parts <= 65535, "at most 65535 parts, got " + std::to_string(p.num_parts));
  check_aligned16(kOp, "arena", p.arena, 0, DType::kF32);
  launch(copy_blocks_kernel, dim3(static_cast<unsigned>(p.num_pairs), static_cast<unsigned>(p.num_parts)),
         dim3(kThreads), 0, stream, kOp, p);
}

}  // namespace pe::cuda
