// SPDX-License-Identifier: Apache-2.0
// The small integer ops round a forward pass, on the CPU (contract: pe/step_inputs.h). A step has at most some thousand
// tokens here, so they run on the calling thread.
#include "pe/step_inputs.h"

#include <cstring>

#include "run.h"

namespace pe::cpu {
namespace {

// Writes the tokens of sequence i from row `first` on; returns how many.
int64_t write_sequence(const StepInputsParams& p, int64_t i, int64_t first) {
  p.seq_lens[i] = 0;
  p.last_indices[i] = 0;
  const int64_t row = p.rows[i];
  if (row < 0) return 0;
  const int64_t num_new = p.num_new_tokens[i], computed = p.num_computed[i], prompt = p.prompt_offsets[i];
  PE_CHECK("step_inputs", num_new >= 0 && first + num_new <= p.num_tokens,
           "sequence " + std::to_string(i) + " ends at token " + std::to_string(first + num_new) +
               " of a pass of num_tokens " + std::to_string(p.num_tokens));
  PE_CHECK("step_inputs", prompt >= 0 || num_new == 1,
           "sequence " + std::to_string(i) + " continues from its last token, so num_new_tokens must be 1, got " +
               std::to_string(num_new));
  const int32_t* block_table = p.block_tables + row * p.block_table_stride;
  for (int64_t j = 0; j < num_new; ++j) {
    const int64_t position = computed + j;
    p.input_ids[first + j] = prompt >= 0 ? p.prompt_ids[prompt + j] : p.last_tokens[row];
    p.positions[first + j] = static_cast<int32_t>(position);
    p.slot_mapping[first + j] = int64_t{block_table[position / p.block_size]} * p.block_size + position % p.block_size;
  }
  p.seq_lens[i] = static_cast<int32_t>(computed + num_new);
  p.last_indices[i] = static_cast<int32_t>(num_new > 0 ? first + num_new - 1 : 0);
  return num_new;
}

}  // namespace

void step_inputs(const StepInputsParams& params) {
  PE_CHECK("step_inputs", params.block_size > 0,
           "block_size must be positive, got " + std::to_string(params.block_size));
  run(params, [](const StepInputsParams& p) {
    int64_t num_live = 0;
    p.query_start[0] = 0;
    for (int64_t i = 0; i < p.num_seqs; ++i) {
      num_live += write_sequence(p, i, num_live);
      p.query_start[i + 1] = static_cast<int32_t>(num_live);
    }
    for (int64_t t = num_live; t < p.num_tokens; ++t) {
      p.input_ids[t] = 0;
      p.positions[t] = 0;
      p.slot_mapping[t] = -1;
    }
  });
}

void store_tokens(const StoreTokensParams& params) {
  run(params, [](const StoreTokensParams& p) {
    for (int64_t i = 0; i < p.num_sampled; ++i) {
      if (p.rows[i] >= 0 && p.token_ids[i] >= 0) p.last_tokens[p.rows[i]] = p.token_ids[i];
    }
  });
}

void update_block_tables(const UpdateBlockTablesParams& params) {
  run(params, [](const UpdateBlockTablesParams& p) {
    for (int64_t i = 0; i < p.num_entries; ++i) {
      const int32_t* entry = p.entries + 3 * i;
      if (entry[0] >= 0) p.block_tables[entry[0] * p.block_table_stride + entry[1]] = entry[2];
    }
  });
}

void gather_rows(const GatherRowsParams& params) {
  run(params, [](const GatherRowsParams& p) {
    const int64_t element = static_cast<int64_t>(size_of(p.dtype));
    for (int64_t i = 0; i < p.num_indices; ++i) {
      std::memcpy(static_cast<char*>(p.out) + i * p.out_stride * element,
                  static_cast<const char*>(p.x) + p.indices[i] * p.x_stride * element, p.cols * element);
    }
  });
}

}  // namespace pe::cpu
