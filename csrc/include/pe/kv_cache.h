// SPDX-License-Identifier: Apache-2.0
// Everything that writes the KV cache: new tokens (with QK-norm and RoPE on the way) and whole blocks.
#pragma once
#include "pe/paged_kv.h"

namespace pe {

// For every token t, read q, k, v side by side from one row of qkv (what the fused projection wrote) and
//   1. if q_norm / k_norm: RMSNorm each head of q / k over head_dim (Qwen3), fp32 inside;
//   2. if cos_sin: rotate the first rotary_dim elements of each head of q and k, half-split ("neox") pairing:
//      (a, b) = (x[i], x[i + rotary_dim / 2]) -> (a cos - b sin, b cos + a sin), i < rotary_dim / 2 (RoFormer,
//      arXiv 2104.09864; scaled variants are only other tables);
//   3. write q back in place, and k and v into the cache at slot_mapping[t] = block * block_size + offset, in the
//      cache's dtype (paged_kv.h says how that of 8 bits rounds).
// slot -1: the token is padding; neither q nor the cache is touched for it. All in fp32 between one load and one
// rounding.
struct RopeWriteKvParams {
  void* qkv = nullptr;                    // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; q rotated in place
  const int32_t* positions = nullptr;     // [num_tokens] absolute position, < max_position
  const int64_t* slot_mapping = nullptr;  // [num_tokens]
  const float* cos_sin = nullptr;  // [max_position, rotary_dim]: cos in the first half, sin in the second; or null
  const void* q_norm = nullptr;    // [head_dim] or null
  const void* k_norm = nullptr;    // [head_dim] or null
  PagedKV kv;
  int64_t num_tokens = 0, qkv_stride = 0, max_position = 0;
  int32_t num_heads = 0, rotary_dim = 0;  // rotary_dim even, <= head_dim
  float norm_eps = 0;
  DType dtype = DType::kBF16;  // of qkv and norms; kv.dtype is the same or kF8E4M3
};

// copy_blocks: dst block <- src block, for copy-on-write. An arena is `num_parts` parts (1 when a block holds all
// layers contiguously; 2 * layers when each layer has its own K and V array), each with the same blocks. Pairs arrive
// in device memory; a pair with dst < 0 is padding. Sources and destinations of one call are disjoint.
struct CopyBlocksParams {
  void* arena = nullptr;
  int64_t num_parts = 1, part_stride_bytes = 0, block_stride_bytes = 0, block_bytes = 0;  // multiples of 16
  const int32_t* pairs = nullptr;                                                         // [num_pairs, 2]: src, dst
  int64_t num_pairs = 0;
};

// swap_blocks: whole blocks between the device arena and a pinned host arena of the same geometry (strides may differ).
// Pairs are host memory here: the copies are issued by the host, as one batch where the driver can.
struct SwapBlocksParams {
  void* dst = nullptr;
  const void* src = nullptr;
  int64_t num_parts = 1, block_bytes = 0;
  int64_t dst_part_stride_bytes = 0, dst_block_stride_bytes = 0, src_part_stride_bytes = 0, src_block_stride_bytes = 0;
  const int32_t* pairs = nullptr;  // host [num_pairs, 2]: src block, dst block
  int64_t num_pairs = 0;
};

namespace cpu {
void rope_write_kv(const RopeWriteKvParams&);
void copy_blocks(const CopyBlocksParams&);
void swap_blocks(const SwapBlocksParams&);  // memory to memory
}  // namespace cpu
namespace cuda {
void rope_write_kv(const RopeWriteKvParams&, Stream);
void copy_blocks(const CopyBlocksParams&, Stream);
void swap_blocks(const SwapBlocksParams&, Stream);
}  // namespace cuda
}  // namespace pe
