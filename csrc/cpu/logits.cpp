// SPDX-License-Identifier: Apache-2.0
// The stages between head and draw on the CPU (contract: pe/logits.h): rows in parallel, each by one thread.
//
// No row is sorted for its likeliest tokens: what reaches the k-th best so far is collected, block by block, which for
// logits in no particular order takes in k ln(V / k) of them.
#include "pe/logits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "isa.h"
#include "logits_rows.h"
#include "pe/parallel.h"
#include "run.h"

namespace pe::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kPromptBit = 0x8000, kMaxCount = 0x7fff;

const LogitsKernels& logits_kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512Bf16) return logits_kernels_avx512();
  if (current_isa() >= Isa::kAvx2) return logits_kernels_avx2();
#endif
  return logits_kernels_generic();
}

void check_vocab_size(const char* op, int64_t vocab_size) {
  PE_CHECK(op, vocab_size > 0 && vocab_size <= INT32_MAX,
           "vocab_size must be positive and fit in an int32, got " + std::to_string(vocab_size));
}

// Calls body(row) for each row, shared out among the threads.
template <typename Body>
void for_each_row(int64_t num_rows, const Body& body) {
  parallel_for(num_rows, 1, [&body](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

uint16_t counted_once_more(uint32_t history) {
  return static_cast<uint16_t>((history & kMaxCount) == kMaxCount ? history : history + 1);
}

// (logit, token) as one integer: the larger logit is larger, among equals the lower id.
uint64_t rank_key(float logit, int32_t token) {
  const float x = logit + 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | static_cast<uint32_t>(~token);
}
int32_t token_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

// Writes the ids of the k largest logits, descending, the lowest id first among equals; returns how many there are.
int32_t find_largest(const LogitsKernels& kernels, const float* logits, int64_t n, int32_t k, int32_t* ids) {
  constexpr int64_t kBlock = 512;
  float values[kBlock + kCollectRoom];
  int32_t value_ids[kBlock + kCollectRoom];
  uint64_t best[kMaxLogprobs + kBlock];
  int64_t count = 0;
  float low = -kInfinity;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t num_new = kernels.collect(logits, begin, std::min(begin + kBlock, n), low, values, value_ids);
    if (num_new == 0) continue;
    for (int64_t i = 0; i < num_new; ++i) best[count++] = rank_key(values[i], value_ids[i]);
    if (count < k) continue;
    std::nth_element(best, best + (k - 1), best + count, std::greater<uint64_t>());
    count = k;
    low = std::nextafter(logits[token_of(best[k - 1])], kInfinity);  // an equal one further on has a higher id
  }
  std::sort(best, best + count, std::greater<uint64_t>());
  for (int64_t i = 0; i < count; ++i) ids[i] = token_of(best[i]);
  return static_cast<int32_t>(count);
}

void row_logprobs(const LogprobsParams& p, int64_t row) {
  const int32_t target = p.target_ids[row];
  if (target < 0 || target >= p.vocab_size) return;
  const LogitsKernels& kernels = logits_kernels();
  const float* logits = p.logits + row * p.logits_stride;
  const RowSummary summary = kernels.summarize(logits, p.vocab_size, logits[target]);
  const auto logprob = [&summary](float x) { return (x - summary.largest) - summary.log_sum; };
  p.target_logprobs[row] = logprob(logits[target]);
  p.target_ranks[row] = summary.num_larger + 1;
  if (p.k == 0) return;
  int32_t* ids = p.top_ids + row * p.k;
  float* logprobs = p.top_logprobs + row * p.k;
  const int32_t found = find_largest(kernels, logits, p.vocab_size, p.k, ids);
  for (int32_t i = 0; i < found; ++i) logprobs[i] = logprob(logits[ids[i]]);
  std::fill(ids + found, ids + p.k, -1);
  std::fill(logprobs + found, logprobs + p.k, -kInfinity);
}

}  // namespace

void apply_penalties(const PenaltyParams& params) {
  check_vocab_size("apply_penalties", params.vocab_size);
  run(params, [](const PenaltyParams& p) {
    for_each_row(p.num_rows, [&p](int64_t row) {
      const int64_t r = p.state_rows[row];
      if (r < 0) return;
      const Penalty penalty{p.repetition[r], p.frequency[r], p.presence[r]};
      logits_kernels().penalize(p.logits + row * p.logits_stride, p.history + r * p.history_stride, p.vocab_size,
                                penalty);
    });
  });
}

void count_tokens(const CountTokensParams& params) {
  check_vocab_size("count_tokens", params.vocab_size);
  run(params, [](const CountTokensParams& p) {
    for (int64_t i = 0; i < p.num_rows; ++i) {
      const int64_t r = p.state_rows[i], token = p.token_ids[i];
      if (r < 0 || token < 0 || token >= p.vocab_size) continue;
      uint16_t& history = p.history[r * p.history_stride + token];
      history = counted_once_more(history);
    }
  });
}

void reset_history(const ResetHistoryParams& params) {
  check_vocab_size("reset_history", params.vocab_size);
  PE_CHECK("reset_history", params.row >= 0, "row must not be negative, got " + std::to_string(params.row));
  run(params, [](const ResetHistoryParams& p) {
    uint16_t* history = p.history + p.row * p.history_stride;
    std::fill(history, history + p.vocab_size, uint16_t{0});
    for (int64_t i = 0; i < p.num_tokens; ++i) {
      const int32_t token = p.token_ids[i];
      if (token < 0 || token >= p.vocab_size) continue;
      history[token] =
          i < p.num_prompt ? static_cast<uint16_t>(history[token] | kPromptBit) : counted_once_more(history[token]);
    }
  });
}

void apply_bias(const BiasParams& params) {
  check_vocab_size("apply_bias", params.vocab_size);
  run(params, [](const BiasParams& p) {
    for (int64_t i = 0; i < p.num_entries; ++i) {
      const int64_t row = p.entries[2 * i], token = p.entries[2 * i + 1];
      if (row < 0 || row >= p.num_rows || token < 0 || token >= p.vocab_size) continue;
      p.logits[row * p.logits_stride + token] += p.values[i];
    }
  });
}

void apply_mask(const MaskParams& params) {
  check_vocab_size("apply_mask", params.vocab_size);
  run(params, [](const MaskParams& p) {
    for_each_row(p.num_rows, [&p](int64_t row) {
      const int64_t r = p.mask_rows[row];
      if (r < 0) return;
      logits_kernels().mask(p.logits + row * p.logits_stride, p.vocab_size, p.masks + r * p.mask_stride, p.num_words);
    });
  });
}

void logprobs(const LogprobsParams& params) {
  check_vocab_size("logprobs", params.vocab_size);
  PE_CHECK("logprobs", params.k >= 0 && params.k <= kMaxLogprobs,
           "k must be in [0, " + std::to_string(kMaxLogprobs) + "], got " + std::to_string(params.k));
  run(params, [](const LogprobsParams& p) { for_each_row(p.num_rows, [&p](int64_t row) { row_logprobs(p, row); }); });
}

}  // namespace pe::cpu
