// SPDX-License-Identifier: Apache-2.0
// From logits to token ids: temperature, min-p, top-k, top-p and the draw, without a host synchronisation.
//
// Row b is processed with the parameters of parameter row r = param_rows[b] (b itself when null):
//   temperature == 0: the largest logit wins, the lowest id among equals. The rest is ignored.
//   otherwise, with s = logit / temperature (fp32) and these filters in this order, each a threshold on s, so that
//   equal logits are kept or dropped together:
//     min_p:  keep s >= max(s) + ln(min_p)                                          (min_p == 0: off)
//     top_k:  keep s when fewer than top_k survivors are strictly larger            (top_k <= 0: off)
//     top_p:  keep s when the survivors strictly larger hold less than top_p of the survivors' mass   (top_p >= 1: off)
//   the winner is argmin over survivors of E(token) / exp(s - max(s)), i.e. argmax of s - ln E, E exponential with rate
//   1 (Gumbel-max; lowest id among equals), drawn from a counter-based generator keyed by (seed, position, token), so
//   that a draw depends on nothing else.
// A row with a NaN, +inf, or no finite logit gets the token -1: that request fails, its neighbours do not notice. -inf
// is a mask.
//
// The generator (murmur3 finalisers, public domain by A. Appleby), all in uint32 arithmetic:
//   mix(h) = h ^= h >> 16; h *= 0x85ebca6b; h ^= h >> 13; h *= 0xc2b2ae35; h ^= h >> 16
//   key    = mix(mix(mix(lo(seed) + 0x9e3779b9) ^ hi(seed)) + position)
//   h      = mix(mix(key ^ token) + key)
//   E      = h >= 2^31 ? -log1p(-(2^32 - h - 0.5) * 2^-32) : -log((h + 0.5) * 2^-32)     // accurate at both ends
// exp masses are summed as 40-bit fixed point in uint64, so that the order of summation does not matter.
#pragma once
#include "pe/core.h"

namespace pe {

struct SampleParams {
  int32_t* token_ids = nullptr;   // [num_rows] out
  const float* logits = nullptr;  // [num_rows, vocab_size], read only
  int64_t num_rows = 0, vocab_size = 0, logits_stride = 0;
  const int32_t* param_rows = nullptr;  // [num_rows] or null; -1: padding, nothing is read or written
  const float* temperature = nullptr;   // [*]
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const int32_t* top_k = nullptr;
  const int64_t* seeds = nullptr;      // bits of a uint64
  const int32_t* positions = nullptr;  // [num_rows] absolute position that the sampled token will have
};

namespace cpu {
void sample(const SampleParams&);
}
namespace cuda {
size_t sample_workspace_bytes(int64_t num_rows, int64_t vocab_size);
void sample(const SampleParams&, Workspace, Stream);
}  // namespace cuda
}  // namespace pe
