// SPDX-License-Identifier: Apache-2.0
// The stages between head and draw (pe/logits.h) as torch ops; see ops.cpp.
#include "pe/logits.h"

#include <torch/csrc/stable/library.h>

#include "torch/dispatch.h"

namespace pe::torch_ops {
namespace {

// The logits that a stage edits in place: p.logits, num_rows, vocab_size and logits_stride.
template <typename Params>
void take_logits(Call& call, const Tensor& logits, Dim* num_rows, Dim* vocab_size, Params* p) {
  const Arg arg = call.arg("logits", logits).shape({num_rows, vocab_size}).f32().rows();
  p->logits = arg.data<float>();
  p->num_rows = *num_rows;
  p->vocab_size = *vocab_size;
  p->logits_stride = arg.stride(0);
  if (*num_rows > 1 && arg.stride(0) < *vocab_size) {
    call.fail("logits must have rows that do not overlap, got a stride of " + std::to_string(arg.stride(0)) + " for " +
              std::to_string(vocab_size->value) + " columns");
  }
}

// p.history, history_stride and vocab_size; no bound is put on the number of rows.
template <typename Params>
void take_history(Call& call, const Tensor& history, Dim* num_states, Dim* vocab_size, Params* p) {
  const Arg arg = call.arg("history", history).shape({num_states, vocab_size}).u16().rows();
  p->history = arg.data<uint16_t>();
  p->history_stride = arg.stride(0);
  p->vocab_size = *vocab_size;
}

void apply_penalties(const Tensor logits, const Tensor state_rows, const Tensor history, const Tensor repetition,
                     const Tensor frequency, const Tensor presence) {
  Call call("apply_penalties");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), num_states("num_states");
  PenaltyParams p;
  take_logits(call, logits, &num_rows, &vocab_size, &p);
  take_history(call, history, &num_states, &vocab_size, &p);
  p.state_rows = call.arg("state_rows", state_rows).shape({&num_rows}).i32().rows().data<int32_t>();
  p.repetition = call.arg("repetition", repetition).shape({&num_states}).f32().rows().data<float>();
  p.frequency = call.arg("frequency", frequency).shape({&num_states}).f32().rows().data<float>();
  p.presence = call.arg("presence", presence).shape({&num_states}).f32().rows().data<float>();
  PE_RUN(call, apply_penalties, p);
}

void count_tokens(const Tensor history, const Tensor state_rows, const Tensor token_ids) {
  Call call("count_tokens");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), num_states("num_states");
  CountTokensParams p;
  take_history(call, history, &num_states, &vocab_size, &p);
  p.state_rows = call.arg("state_rows", state_rows).shape({&num_rows}).i32().rows().data<int32_t>();
  p.token_ids = call.arg("token_ids", token_ids).shape({&num_rows}).i32().rows().data<int32_t>();
  p.num_rows = num_rows;
  PE_RUN(call, count_tokens, p);
}

void reset_history(const Tensor history, int64_t row, const Tensor token_ids, int64_t num_prompt) {
  Call call("reset_history");
  Dim num_tokens("num_tokens"), vocab_size("vocab_size"), num_states("num_states");
  ResetHistoryParams p;
  take_history(call, history, &num_states, &vocab_size, &p);
  p.token_ids = call.arg("token_ids", token_ids).shape({&num_tokens}).i32().rows().data<int32_t>();
  if (row < 0 || row >= num_states) {
    call.fail("row must be in [0, num_states=" + std::to_string(num_states.value) + "), got " + std::to_string(row));
  }
  if (num_prompt < 0 || num_prompt > num_tokens) {
    call.fail("num_prompt must be in [0, num_tokens=" + std::to_string(num_tokens.value) + "], got " +
              std::to_string(num_prompt));
  }
  p.row = static_cast<int32_t>(row);
  p.num_tokens = num_tokens;
  p.num_prompt = num_prompt;
  PE_RUN(call, reset_history, p);
}

void apply_bias(const Tensor logits, const Tensor entries, const Tensor values) {
  Call call("apply_bias");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), num_entries("num_entries"), two("2", 2);
  BiasParams p;
  take_logits(call, logits, &num_rows, &vocab_size, &p);
  p.entries = call.arg("entries", entries).shape({&num_entries, &two}).i32().contiguous().data<int32_t>();
  p.values = call.arg("values", values).shape({&num_entries}).f32().rows().data<float>();
  p.num_entries = num_entries;
  PE_RUN(call, apply_bias, p);
}

void apply_mask(const Tensor logits, const Tensor mask_rows, const Tensor masks) {
  Call call("apply_mask");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), num_masks("num_masks"), num_words("num_words");
  MaskParams p;
  take_logits(call, logits, &num_rows, &vocab_size, &p);
  p.mask_rows = call.arg("mask_rows", mask_rows).shape({&num_rows}).i32().rows().data<int32_t>();
  const Arg masks_arg = call.arg("masks", masks).shape({&num_masks, &num_words}).i32().rows();
  p.masks = masks_arg.data<int32_t>();
  p.num_words = num_words;
  p.mask_stride = masks_arg.stride(0);
  PE_RUN(call, apply_mask, p);
}

void logprobs(const Tensor target_logprobs, const Tensor target_ranks, const Tensor top_ids, const Tensor top_logprobs,
              const Tensor logits, const Tensor target_ids, const MaybeTensor workspace) {
  Call call("logprobs");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), k("k");
  LogprobsParams p;
  const Arg logits_arg = call.arg("logits", logits).shape({&num_rows, &vocab_size}).f32().rows();
  p.target_ids = call.arg("target_ids", target_ids).shape({&num_rows}).i32().rows().data<int32_t>();
  p.target_logprobs = call.arg("target_logprobs", target_logprobs).shape({&num_rows}).f32().rows().data<float>();
  p.target_ranks = call.arg("target_ranks", target_ranks).shape({&num_rows}).i32().rows().data<int32_t>();
  p.top_ids = call.arg("top_ids", top_ids).shape({&num_rows, &k}).i32().contiguous().data<int32_t>();
  p.top_logprobs = call.arg("top_logprobs", top_logprobs).shape({&num_rows, &k}).f32().contiguous().data<float>();
  if (k > kMaxLogprobs) {
    call.fail("k must be in [0, " + std::to_string(kMaxLogprobs) + "], got " + std::to_string(k.value));
  }
  p.logits = logits_arg.data<float>();
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.logits_stride = logits_arg.stride(0);
  p.k = static_cast<int32_t>(k);
  if (!call.on_cuda()) return cpu::logprobs(p);
  const Workspace scratch =
      workspace ? call.arg("workspace", *workspace).contiguous().aligned(256).bytes() : Workspace{};
  PE_ON_CUDA(call, cuda::logprobs(p, scratch, stream));
  (void)scratch;
}

int64_t logprobs_workspace_bytes([[maybe_unused]] int64_t num_rows, [[maybe_unused]] int64_t vocab_size,
                                 [[maybe_unused]] int64_t k) {
#ifdef PE_CUDA
  return static_cast<int64_t>(cuda::logprobs_workspace_bytes(num_rows, vocab_size, static_cast<int32_t>(k)));
#else
  return 0;
#endif
}

void register_tensor_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("apply_penalties", TORCH_BOX(&apply_penalties));
  m.impl("count_tokens", TORCH_BOX(&count_tokens));
  m.impl("reset_history", TORCH_BOX(&reset_history));
  m.impl("apply_bias", TORCH_BOX(&apply_bias));
  m.impl("apply_mask", TORCH_BOX(&apply_mask));
  m.impl("logprobs", TORCH_BOX(&logprobs));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyengine, CPU, m) { register_tensor_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pyengine, CUDA, m) { register_tensor_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pyengine, CompositeExplicitAutograd, m) {
  m.impl("logprobs_workspace_bytes", TORCH_BOX(&logprobs_workspace_bytes));
}

}  // namespace pe::torch_ops
