// SPDX-License-Identifier: Apache-2.0
// Every op of torch.ops.pyengine, once. Names and shapes follow the params structs in include/pe; what is written is
// the first argument where there is one such. The Python functions over these are in pyengine/ops.
//
// The build stamps a hash of this file into the binary, so that a checkout notices a _C of another schema.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyengine, m) {
  // x, residual, out [rows, cols]; weight [cols]
  m.def("rms_norm(Tensor(a!) out, Tensor x, Tensor weight, float eps, Tensor(b!)? residual) -> ()");
  // gate_up [rows, 2 * cols]; out [rows, cols]
  m.def("silu_mul(Tensor(a!) out, Tensor gate_up) -> ()");

  // packed: packed_bytes(n, k, dtype) in elements; weight [rows, k] becomes the rows from row_offset on
  m.def("packed_bytes(int n, int k, int dtype) -> int");
  m.def("pack_weight(Tensor(a!) packed, Tensor weight, int n, int row_offset) -> ()");
  // x [m, k]; weight packed [n, k]; bias [n]; out [m, n] of x's dtype or float32
  m.def("linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor(b!)? workspace) -> ()");
  m.def("linear_workspace_bytes() -> int");
  // x [m, k]; weight packed [2 * cols, k], rows gate, up; gate_up [m, 2 * cols], scratch; out [m, cols]
  m.def("linear_silu_mul(Tensor(a!) out, Tensor x, Tensor weight, Tensor(b!) gate_up) -> ()");
  // ids [num_tokens] int32; weight packed [vocab_size, dim]; out [num_tokens, dim]
  m.def("embedding(Tensor(a!) out, Tensor ids, Tensor weight, int vocab_size) -> ()");

  // qkv [num_tokens, (num_heads + 2 num_kv_heads) head_dim]; positions [num_tokens] int32; slot_mapping [num_tokens]
  // int64; cos_sin [max_position, rotary_dim] f32; caches [num_blocks, num_kv_heads, block_size, head_dim]; norms
  // [head_dim]; k_scale, v_scale [num_kv_heads] f32, where the caches are float8_e4m3fn
  m.def(
      "rope_write_kv(Tensor(a!) qkv, Tensor positions, Tensor slot_mapping, Tensor? cos_sin, Tensor(b!) k_cache, "
      "Tensor(c!) v_cache, int num_heads, Tensor? q_norm, Tensor? k_norm, float norm_eps, Tensor? k_scale, "
      "Tensor? v_scale) -> ()");
  // arena [num_parts, num_blocks, ...]; pairs [num_pairs, 2] int32: src, dst; of swap_blocks in host memory
  m.def("copy_blocks(Tensor(a!) arena, Tensor pairs) -> ()");
  m.def("swap_blocks(Tensor(a!) dst, Tensor src, Tensor pairs) -> ()");

  // q, out [num_tokens, num_heads, head_dim]; block_tables [num_rows, max_blocks], table_rows [num_seqs],
  // query_start [num_seqs + 1], seq_lens [num_seqs], all int32
  m.def(
      "paged_attention(Tensor(a!) out, Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables, Tensor? "
      "table_rows, "
      "Tensor query_start, Tensor seq_lens, int max_seq_len, float scale, int window, Tensor? plan, Tensor(b!)? "
      "workspace, bool settled, int turn, Tensor? k_scale, Tensor? v_scale) -> ()");
  // dtype: of the caches
  m.def(
      "attention_plan(Tensor(a!) plan, Tensor block_tables, Tensor? table_rows, Tensor query_start, Tensor seq_lens, "
      "int block_size, int num_tokens, int max_seq_len, int num_heads, int num_kv_heads, int head_dim, int window, "
      "int dtype) -> ()");
  m.def(
      "attention_buffer_bytes(int num_seqs, int num_tokens, int max_seq_len, int num_heads, int num_kv_heads, int "
      "head_dim, "
      "int dtype) -> (int, int)");

  // logits [num_rows, vocab_size] f32; temperature, top_p, min_p f32, top_k int32, seeds int64: one per parameter row;
  // positions, param_rows, token_ids [num_rows] int32
  m.def(
      "sample(Tensor(a!) token_ids, Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
      "Tensor seeds, "
      "Tensor positions, Tensor? param_rows, Tensor(b!)? workspace) -> ()");
  m.def("sample_workspace_bytes(int num_rows, int vocab_size) -> int");

  // The stages before the draw. logits [num_rows, vocab_size] f32; history [num_states, vocab_size] uint16; state_rows,
  // mask_rows, token_ids [num_rows] int32; repetition, frequency, presence [num_states] f32; entries [num_entries, 2]
  // int32: row, token, values [num_entries] f32; masks [num_masks, num_words] int32
  m.def(
      "apply_penalties(Tensor(a!) logits, Tensor state_rows, Tensor history, Tensor repetition, Tensor frequency, "
      "Tensor presence) -> ()");
  m.def("count_tokens(Tensor(a!) history, Tensor state_rows, Tensor token_ids) -> ()");
  m.def("reset_history(Tensor(a!) history, int row, Tensor token_ids, int num_prompt) -> ()");
  m.def("apply_bias(Tensor(a!) logits, Tensor entries, Tensor values) -> ()");
  m.def("apply_mask(Tensor(a!) logits, Tensor mask_rows, Tensor masks) -> ()");
  // logits [num_rows, vocab_size] f32; target_ids, target_ranks int32 and target_logprobs f32 [num_rows]; top_ids int32
  // and top_logprobs f32 [num_rows, k]
  m.def(
      "logprobs(Tensor(a!) target_logprobs, Tensor(b!) target_ranks, Tensor(c!) top_ids, Tensor(d!) top_logprobs, "
      "Tensor logits, Tensor target_ids, Tensor(e!)? workspace) -> ()");
  m.def("logprobs_workspace_bytes(int num_rows, int vocab_size, int k) -> int");

  // device rows: last_tokens [num_rows], block_tables [num_rows, max_blocks]; the step's arrays [num_seqs]; all int32.
  // query_start [num_seqs + 1], seq_lens and last_indices [num_seqs], input_ids and positions [num_tokens] int32,
  // slot_mapping [num_tokens] int64
  m.def(
      "step_inputs(Tensor last_tokens, Tensor block_tables, int block_size, Tensor rows, Tensor num_new_tokens, "
      "Tensor num_computed, Tensor prompt_offsets, Tensor prompt_ids, Tensor(a!) query_start, Tensor(b!) seq_lens, "
      "Tensor(c!) input_ids, Tensor(d!) positions, Tensor(e!) slot_mapping, Tensor(f!) last_indices) -> ()");
  // last_tokens [num_rows]; rows, token_ids [num_sampled]; all int32
  m.def("store_tokens(Tensor(a!) last_tokens, Tensor rows, Tensor token_ids) -> ()");
  // block_tables [num_rows, max_blocks]; entries [num_entries, 3]: row, index, block; int32
  m.def("update_block_tables(Tensor(a!) block_tables, Tensor entries) -> ()");
  // x [*, cols]; indices [num_indices] int32; out [num_indices, cols]
  m.def("gather_rows(Tensor(a!) out, Tensor x, Tensor indices) -> ()");

  // the CPU backend's threads and instruction set; its recorder: programs are named by handles
  m.def("set_num_threads(int n) -> ()");
  m.def("num_threads() -> int");
  m.def("set_isa(str name) -> ()");
  m.def("isa() -> str");
  m.def("record_begin() -> int");
  m.def("record_end(int program) -> ()");
  m.def("record_replay(int program) -> ()");
  m.def("record_free(int program) -> ()");
  // "version schema-hash cuda-version": what this binary was built from and with
  // for benchmarks: names in csrc/cuda/common/tuning.h
  m.def("set_tuning(str name, int value) -> ()");
  m.def("build_info() -> str");
}
