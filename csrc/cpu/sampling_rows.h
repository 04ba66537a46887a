// SPDX-License-Identifier: Apache-2.0
// Sampling on the CPU, between the driver (sampling.cpp: which filters, in which order) and the passes over one row
// (one file per instruction set).
#pragma once
#include <cstdint>

namespace pe::cpu {

// Rows of scores that a pass reads are padded with -inf to a multiple of this; rows that a pass writes have this much
// room more.
constexpr int64_t kScorePadding = 16;

// Passes over one row. -inf is a masked token: no pass ever keeps it.
struct SampleKernels {
  // The id of the largest logit, the lowest among equals; -1 for a row with NaN or +inf or nothing but -inf.
  int32_t (*greedy)(const float* logits, int64_t n);

  // scores = logits / temperature, padded. Returns the largest; NaN for a row with NaN or +inf.
  float (*scale)(const float* logits, int64_t n, float temperature, float* scores);

  // Copies the scores in [low, high), in order, and their ids (index, or ids[index]) unless out_ids is null. Returns
  // how many.
  int64_t (*collect)(const float* scores, int64_t n, float low, float high, float* out, int32_t* out_ids);

  // The sum over scores >= low of e^(score - top) in units of 2^-40, each rounded down.
  uint64_t (*mass)(const float* scores, int64_t n, float top, float low);

  // The winner of argmax score - ln E(key, id) among scores >= low, where `top` is the largest score; ids null: the
  // index.
  int32_t (*draw)(const float* scores, const int32_t* ids, int64_t n, float top, float low, uint32_t key);
};

const SampleKernels& sample_kernels_generic();
const SampleKernels& sample_kernels_avx2();
const SampleKernels& sample_kernels_avx512();

// The finaliser of murmur3 (A. Appleby, public domain).
static constexpr uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ h >> 16;
}

}  // namespace pe::cpu
