// SPDX-License-Identifier: Apache-2.0
// The inputs of one forward pass, built on the device from the persistent rows, so that neither the last token nor a
// block table is sent every step.
#pragma once
#include "pe/core.h"

namespace pe {

// The step's sequences are i in [0, num_seqs); sequence i occupies the device row rows[i] and computes
// num_new_tokens[i] tokens from position num_computed[i] on. Its ids are prompt_ids[prompt_offsets[i] ...] or, when
// prompt_offsets[i] < 0 (then num_new_tokens is 1), last_tokens[rows[i]]. rows[i] < 0 is padding: no tokens.
struct StepInputsParams {
  // device rows
  const int32_t* last_tokens = nullptr;   // [num_rows]
  const int32_t* block_tables = nullptr;  // [num_rows, max_blocks]
  int64_t block_table_stride = 0;
  int32_t block_size = 16;
  // the step, [num_seqs] each
  const int32_t* rows = nullptr;
  const int32_t* num_new_tokens = nullptr;
  const int32_t* num_computed = nullptr;
  const int32_t* prompt_offsets = nullptr;
  const int32_t* prompt_ids = nullptr;
  int64_t num_seqs = 0;
  // out
  int32_t* query_start = nullptr;   // [num_seqs + 1]
  int32_t* seq_lens = nullptr;      // [num_seqs]; 0 for padding
  int32_t* input_ids = nullptr;     // [num_tokens]; past the last live token: 0
  int32_t* positions = nullptr;     // [num_tokens]; past: 0
  int64_t* slot_mapping = nullptr;  // [num_tokens]; past: -1
  int32_t* last_indices = nullptr;  // [num_seqs] index of the sequence's last token in the step (0 for padding)
  int64_t num_tokens = 0;           // upper bound: the padded size of the pass
};

// After sampling: last_tokens[rows[i]] = token_ids[i] where rows[i] >= 0 and token_ids[i] >= 0.
struct StoreTokensParams {
  int32_t* last_tokens = nullptr;
  const int32_t* rows = nullptr;       // [num_sampled]
  const int32_t* token_ids = nullptr;  // [num_sampled]
  int64_t num_sampled = 0;
};

// table[entries[i][0]][entries[i][1]] = entries[i][2]; entries with a negative row are padding.
struct UpdateBlockTablesParams {
  int32_t* block_tables = nullptr;
  int64_t block_table_stride = 0;
  const int32_t* entries = nullptr;  // [num_entries, 3]: row, index, block
  int64_t num_entries = 0;
};

// out[i] = x[indices[i]]: the hidden states whose logits are wanted.
struct GatherRowsParams {
  void* out = nullptr;
  const void* x = nullptr;
  const int32_t* indices = nullptr;
  int64_t num_indices = 0, cols = 0, out_stride = 0, x_stride = 0;
  DType dtype = DType::kBF16;
};

namespace cpu {
void step_inputs(const StepInputsParams&);
void store_tokens(const StoreTokensParams&);
void update_block_tables(const UpdateBlockTablesParams&);
void gather_rows(const GatherRowsParams&);
}  // namespace cpu
namespace cuda {
void step_inputs(const StepInputsParams&, Stream);
void store_tokens(const StoreTokensParams&, Stream);
void update_block_tables(const UpdateBlockTablesParams&, Stream);
void gather_rows(const GatherRowsParams&, Stream);
}  // namespace cuda
}  // namespace pe
