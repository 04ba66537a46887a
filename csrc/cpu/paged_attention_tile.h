// SPDX-License-Identifier: Apache-2.0
// Paged attention on the CPU, between the driver (paged_attention.cpp: who computes what) and the kernels (one file per
// instruction set: how a tile of queries meets a chunk of keys).
#pragma once
#include "pe/paged_attention.h"

namespace pe::cpu {

// Queries of one sequence, with all query heads that share one kv head. Row r = query r / group, head r % group of the
// group.
struct QueryTile {
  int32_t seq = 0, kv_head = 0;
  int64_t first_token = 0;     // row of q and out
  int64_t first_position = 0;  // absolute position of that row
  int64_t num_queries = 0;
  const QueryTile* upcoming = nullptr;  // what this thread turns to next, so that its keys can be prefetched; or null

  int64_t last_position() const { return first_position + num_queries - 1; }
};

// A tile takes as many queries as make about this many rows: K and V are widened (K transposed too) once per tile,
// which at 128 rows costs about a twentieth of the multiplications, while the rows' sums (64 KiB at head_dim 64) stay
// in the L2.
constexpr int64_t kRowsPerTile = 128;

// Running softmax of each row: the maximum, the sum of e^(s - max) and the sum of e^(s - max) v. sum == 0: no key seen
// yet.
struct SoftmaxState {
  float* max = nullptr;  // [rows]
  float* sum = nullptr;  // [rows]
  float* acc = nullptr;  // [rows, padded head_dim]
};

// head_dim as the scratch has it: whole vectors of the widest kind, zeros past the end.
constexpr int64_t padded_dim(int64_t head_dim) { return round_up<int64_t>(head_dim, 16); }
constexpr int64_t state_floats(int64_t rows, int64_t head_dim) {
  return round_up<int64_t>(rows, 16) * 2 + rows * padded_dim(head_dim);
}
constexpr SoftmaxState state_at(float* floats, int64_t rows) {
  const int64_t padded = round_up<int64_t>(rows, 16);
  return {floats, floats + padded, floats + 2 * padded};
}
// One tile of keys and values, in fp32 at most.
constexpr int64_t kv_floats(int64_t head_dim) { return 2 * kTileTokens * padded_dim(head_dim); }

// The staged queries of a tile, with room for a block of rows that begins at the last one.
constexpr int64_t query_floats(int64_t rows, int64_t head_dim) { return (rows + 16) * padded_dim(head_dim); }

// The four steps of a tile; all memory is 64-byte aligned and the caller's. What lies in q and kv is the kernel's
// affair.
struct AttentionKernel {
  void (*load_queries)(const PagedAttentionParams&, const QueryTile&, float* q);
  void (*attend)(const PagedAttentionParams&, const QueryTile&, int64_t chunk, const float* q, float* kv, SoftmaxState);
  void (*merge)(int64_t rows, int64_t head_dim, SoftmaxState from, SoftmaxState into);
  void (*store)(const PagedAttentionParams&, const QueryTile&, SoftmaxState);
};

const AttentionKernel& attention_generic(DType dtype, DType stored, int64_t head_dim);
const AttentionKernel& attention_avx2(DType dtype, DType stored, int64_t head_dim);
const AttentionKernel& attention_avx512(DType dtype, DType stored, int64_t head_dim);
const AttentionKernel& attention_amx(DType dtype, DType stored, int64_t head_dim);

}  // namespace pe::cpu
