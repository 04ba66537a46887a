// SPDX-License-Identifier: Apache-2.0
// Attention of any mix of prefill chunks and decodes over the paged KV cache, in one call.
//
// Sequence s owns the query rows [query_start[s], query_start[s + 1]) and has seq_lens[s] tokens in the cache, those of
// this step included; its query row i sits at absolute position seq_lens[s] - num_queries + i and sees the keys at
// positions (position - window, position] (all up to position when window == 0). K and V of this step are already in
// the cache.
//
// Batch invariance is part of the contract. A row's keys are cut at the fixed absolute positions 0, 256, 512, ...
// (kChunkTokens). Inside a chunk a row runs one online softmax over tiles of kTileTokens keys from an empty state;
// chunks that hold any visible key are merged in ascending order by
//     m = max(m1, m2);  acc = acc1 * e^(m1 - m) + acc2 * e^(m2 - m);  sum likewise.
// So the bits of a row depend on its own q, k, v and position, never on its neighbours, on how the prompt was cut into
// steps, or on which core computed which chunk.
//
// plan() works out on the device, once per step, which CTA takes which chunks; run() is called once per layer with that
// plan.
#pragma once
#include "pe/paged_kv.h"

namespace pe {

constexpr int kChunkTokens = 256;
constexpr int kTileTokens = 64;

struct PagedAttentionParams {
  void* out = nullptr;      // [num_tokens, num_heads, head_dim]
  const void* q = nullptr;  // [num_tokens, num_heads, head_dim]
  int64_t out_token_stride = 0, out_head_stride = 0, q_token_stride = 0, q_head_stride = 0;
  PagedKV kv;
  const int32_t* block_tables = nullptr;  // [num_rows, max_blocks]: sequence s reads row table_rows[s]
  int64_t block_table_stride = 0;
  const int32_t* table_rows = nullptr;   // [num_seqs], or null for the identity
  const int32_t* query_start = nullptr;  // [num_seqs + 1], ascending from 0
  const int32_t* seq_lens = nullptr;     // [num_seqs]; >= number of queries; padding sequences have no queries
  int64_t num_seqs = 0, num_tokens = 0;  // upper bounds
  int32_t num_heads = 0;                 // num_heads % kv.num_kv_heads == 0
  int32_t max_seq_len = 0;               // upper bound on seq_lens, known to the host (sizes the plan)
  float scale = 0;                       // applied to q k^T
  int32_t window = 0;                    // sliding window in tokens; 0 = none
  // Tables, starts, lengths and the plan were complete before the kernel in front of this one began to write (in a
  // model: rope_write_kv, which releases its successor behind its own wait), so that they may be read beside it.
  bool settled = false;
  // Calls with the same plan take turns: 0, 1, 0, 1, ... from the plan's making on.
  int32_t turn = 0;
  DType dtype = DType::kBF16;            // of q, out and (today) of the cache
};

namespace cpu {
void paged_attention(const PagedAttentionParams&);
}

namespace cuda {
// The plan is device memory of plan_bytes, written by attention_plan and read by paged_attention; it depends only on
// query_start, seq_lens, the block tables, the block size, the head counts and the window, so one plan serves all
// layers of equal shape. Where tables begin with the same blocks, their keys are read for many sequences at once;
// without tables (null) a plan does not look for that. The workspace holds the partial results of rows that more than
// one CTA works on; both sizes depend on the upper bounds alone.
size_t attention_plan_bytes(const PagedAttentionParams&);
size_t attention_workspace_bytes(const PagedAttentionParams&);
void attention_plan(const PagedAttentionParams&, Workspace plan, Stream);
void paged_attention(const PagedAttentionParams&, Workspace plan, Workspace, Stream);
}  // namespace cuda
}  // namespace pe
