// SPDX-License-Identifier: Apache-2.0
// The stages before the draw on the CPU, between the driver (logits.cpp: which rows, with which state) and the passes
// over one row (one file per instruction set).
#pragma once
#include <cstdint>

namespace pe::cpu {

// Room that `collect` needs past the last value it keeps: a vector is written whole.
constexpr int64_t kCollectRoom = 16;

struct Penalty {
  float repetition, frequency, presence;
};

// What log-probabilities are made of: that of x is (x - largest) - log_sum. NaN in a row with NaN, +inf or nothing but
// -inf.
struct RowSummary {
  float largest, log_sum;  // ln of the sum of e^(x - largest)
  int32_t num_larger;      // logits strictly larger than the target's
};

// Passes over one row of n logits.
struct LogitsKernels {
  void (*penalize)(float* logits, const uint16_t* history, int64_t n, const Penalty& penalty);
  void (*mask)(float* logits, int64_t n, const int32_t* words, int64_t num_words);
  RowSummary (*summarize)(const float* logits, int64_t n, float target);

  // Copies the logits >= low with an index in [begin, end), in order, and their indices. Returns how many.
  int64_t (*collect)(const float* logits, int64_t begin, int64_t end, float low, float* out, int32_t* out_ids);
};

const LogitsKernels& logits_kernels_generic();
const LogitsKernels& logits_kernels_avx2();
const LogitsKernels& logits_kernels_avx512();

}  // namespace pe::cpu
