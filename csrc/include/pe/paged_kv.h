// SPDX-License-Identifier: Apache-2.0
// The paged KV cache as a view (Kwon et al. 2023, arXiv 2309.06180): pointers and strides, so that the layout
// is the caller's data and no kernel's assumption.
#pragma once
#include "pe/core.h"

namespace pe {

// Element (block, head, token, d) of K lives at k + block * block_stride + head * head_stride + token * token_stride +
// d; V likewise with the same strides. Rows of head_dim elements are contiguous and 16-byte aligned.
//
// dtype is that of the computation, or kF8E4M3. Then an element e stands for e * k_scale[head] (V: v_scale), and a
// value x is stored as x / scale, computed in fp32, rounded to nearest even and saturated: beyond 448 it becomes 448
// with x's sign, infinities too; NaN stays NaN. So a block's bytes depend on the tokens in it and on nothing else.
struct PagedKV {
  void* k = nullptr;
  void* v = nullptr;
  int64_t block_stride = 0, head_stride = 0, token_stride = 0;  // elements
  int32_t num_blocks = 0;
  int32_t block_size = 16;  // tokens per block; a power of two, 16 .. 256
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kBF16;
  const float* k_scale = nullptr;  // [num_kv_heads], positive and finite; null: 1. Of kF8E4M3 alone
  const float* v_scale = nullptr;
};

}  // namespace pe
