// SPDX-License-Identifier: Apache-2.0
// What happens to logits between the head and the draw: penalties, biases, masks; and the log-probabilities that
// clients ask for.
//
// Each stage has rows of its own state on the device and costs nothing for rows that do not use it. A stage edits a row
// in place from that row's own state alone, so results never depend on the batch. Order of the stages:
// log-probabilities are read from the raw logits first; then penalties, biases, masks; then sampling.h.
#pragma once
#include "pe/core.h"

namespace pe {

// Penalties on tokens seen so far, as OpenAI and Keskar et al. 2019 (CTRL, arXiv 1909.05858) define them. history[r][v]
// is 0x8000 * (v occurs in the prompt) + min(number of times v was generated, 0x7fff). For a row b with state row r =
// state_rows[b] >= 0:
//   seen = history != 0, count = history & 0x7fff
//   l = seen ? (l > 0 ? l / repetition[r] : l * repetition[r]) : l
//   l = l - frequency[r] * count - presence[r] * (count > 0)
struct PenaltyParams {
  float* logits = nullptr;  // [num_rows, vocab_size] edited in place
  int64_t num_rows = 0, vocab_size = 0, logits_stride = 0;
  const int32_t* state_rows = nullptr;  // [num_rows]; -1: no penalties, the row is not touched
  const uint16_t* history = nullptr;    // [*, vocab_size]
  int64_t history_stride = 0;
  const float* repetition = nullptr;  // [*] > 0; 1: off
  const float* frequency = nullptr;   // [*]; 0: off
  const float* presence = nullptr;    // [*]; 0: off
};

// history of the rows that sampled: history[state_rows[b]][token_ids[b]] counts one more, saturating, where the row is
// not negative and the token is in [0, vocab_size).
struct CountTokensParams {
  uint16_t* history = nullptr;
  int64_t history_stride = 0, vocab_size = 0;
  const int32_t* state_rows = nullptr;  // [num_rows], distinct where >= 0
  const int32_t* token_ids = nullptr;   // [num_rows]
  int64_t num_rows = 0;
};

// A row changes owner: history[row] becomes the counts of its tokens, the first num_prompt of which only mark the
// prompt bit.
struct ResetHistoryParams {
  uint16_t* history = nullptr;
  int64_t history_stride = 0, vocab_size = 0;
  int32_t row = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]; ids outside [0, vocab_size) are ignored
  int64_t num_tokens = 0, num_prompt = 0;
};

// Sparse additions: logits[row][token] += value for each entry; an entry outside the logits (a negative row is padding)
// is ignored. -inf bans a token. Entries of one (row, token) do not repeat.
struct BiasParams {
  float* logits = nullptr;
  int64_t num_rows = 0, vocab_size = 0, logits_stride = 0;
  const int32_t* entries = nullptr;  // [num_entries, 2]: logits row, token
  const float* values = nullptr;     // [num_entries]
  int64_t num_entries = 0;
};

// Allow-lists as bit masks (token v allowed: bit v % 32 of word v / 32): logits of a row b with mask_rows[b] >= 0
// become -inf where the bit is 0.
struct MaskParams {
  float* logits = nullptr;
  int64_t num_rows = 0, vocab_size = 0, logits_stride = 0;
  const int32_t* mask_rows = nullptr;  // [num_rows]; -1: everything is allowed
  const int32_t* masks = nullptr;      // [*, num_words]; tokens past the last word are forbidden
  int64_t num_words = 0, mask_stride = 0;
};

constexpr int32_t kMaxLogprobs = 64;

// log softmax of row b at the target token and at its k largest logits (descending, lowest id first among equals), and
// the target's rank (1 + number of strictly larger logits). The log-sum-exp runs in fp32 in an order that depends on
// vocab_size alone. A row with a NaN, +inf or nothing but -inf has NaN for log-probabilities, and ids and ranks that
// mean nothing. Places past the vocabulary's end get the id -1 and -inf.
struct LogprobsParams {
  float* target_logprobs = nullptr;  // [num_rows] out
  int32_t* target_ranks = nullptr;   // [num_rows] out
  int32_t* top_ids = nullptr;        // [num_rows, k] out
  float* top_logprobs = nullptr;     // [num_rows, k] out
  const float* logits = nullptr;     // [num_rows, vocab_size]
  int64_t num_rows = 0, vocab_size = 0, logits_stride = 0;
  const int32_t* target_ids = nullptr;  // [num_rows]; outside [0, vocab_size), as -1: padding, nothing is written
  int32_t k = 0;                        // 0 .. kMaxLogprobs
};

namespace cpu {
void apply_penalties(const PenaltyParams&);
void count_tokens(const CountTokensParams&);
void reset_history(const ResetHistoryParams&);
void apply_bias(const BiasParams&);
void apply_mask(const MaskParams&);
void logprobs(const LogprobsParams&);
}  // namespace cpu
namespace cuda {
void apply_penalties(const PenaltyParams&, Stream);
void count_tokens(const CountTokensParams&, Stream);
void reset_history(const ResetHistoryParams&, Stream);
void apply_bias(const BiasParams&, Stream);
void apply_mask(const MaskParams&, Stream);
size_t logprobs_workspace_bytes(int64_t num_rows, int64_t vocab_size, int32_t k);
void logprobs(const LogprobsParams&, Workspace, Stream);
}  // namespace cuda
}  // namespace pe
