// SPDX-License-Identifier: Apache-2.0
// K and V as the copy engine sees them: tensors of 16-bit words from which boxes of 16 tokens of one head are taken
// (bulk_copy.cuh), of all columns or of 64.
#pragma once
#include "cuda/common/bulk_copy.cuh"
#include "pe/paged_attention.h"

#if !defined(PE_SIMT)
#include "cuda/common/tensor_map.h"
#endif

namespace pe::cuda::attention {

struct KvMaps {
  BoxMap k, v, k_columns, v_columns;
};

// Of a row. An element in e4m3 is half a word.
inline int words_of(const PagedKV& kv) { return kv.head_dim * static_cast<int>(size_of(kv.dtype)) / 2; }

#if defined(PE_SIMT)

inline BoxMap make_box_map(const PagedKV& kv, const void* data, bool) {
  const int64_t size = static_cast<int64_t>(size_of(kv.dtype));
  return {static_cast<const unsigned char*>(data),
          kv.token_stride * size,
          kv.head_stride * size,
          kv.block_stride * size,
          kv.num_blocks,
          words_of(kv)};
}

#else

// Dimensions: column of a block of 64 (or of all 32), token, block of columns, head, physical block.
inline BoxMap make_box_map(const PagedKV& kv, const void* data, bool all_columns) {
  const auto count = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const auto bytes = [&](int64_t elements) { return count(elements) * size_of(kv.dtype); };
  const int row_bytes = box_row_bytes(words_of(kv)), columns = row_bytes / 2;
  const int blocks_of_columns = words_of(kv) / columns;
  const cuuint64_t sizes[] = {count(columns), count(kv.block_size), count(blocks_of_columns), count(kv.num_kv_heads),
                              count(kv.num_blocks)};
  const cuuint64_t strides[] = {bytes(kv.token_stride), count(row_bytes), bytes(kv.head_stride),
                                bytes(kv.block_stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(columns), kBoxTokens,
                            all_columns ? static_cast<cuuint32_t>(blocks_of_columns) : 1, 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const auto type = CU_TENSOR_MAP_DATA_TYPE_UINT16;  // nothing is computed on the way
  const auto swizzle = row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  BoxMap map;
  const CUresult result =
      encode_tiled()(&map, type, 5, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PE_CHECK("paged_attention", result == CUDA_SUCCESS,
           "cuTensorMapEncodeTiled failed with " + std::to_string(result) + " for a cache of " +
               std::to_string(kv.num_blocks) + " blocks");
  return map;
}

#endif

inline KvMaps make_kv_maps(const PagedKV& kv) {
  return {make_box_map(kv, kv.k, true), make_box_map(kv, kv.v, true), make_box_map(kv, kv.k, false),
          make_box_map(kv, kv.v, false)};
}

}  // namespace pe::cuda::attention
