// SPDX-License-Identifier: Apache-2.0
// The paged KV cache as a view (Kwon et al. 2023, arXiv 2309.06180): pointers and strides, so that the layout
// is the caller's data and no kernel's assumption.
#pragma once
#include "pe/core.h"

namespace pe {

// Element (block, head, token, d) of K lives at k + block * block_stride + head * head_stride + token * token_stride +
// d; V likewise with the same strides. Rows of head_dim elements are contiguous and 16-byte aligned.
struct PagedKV {
  void* k = nullptr;
  void* v = nullptr;
  int64_t block_stride = 0, head_stride = 0, token_stride = 0;  // elements
  int32_t num_blocks = 0;
  int32_t block_size = 16;  // tokens per block; a power of two, 16 .. 256
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kBF16;
};

}  // namespace pe
