// SPDX-License-Identifier: Apache-2.0
// The draw of pe/sampling.h: an exponential race. Token i runs for E_i / exp(s_i), the smallest time wins, so the
// winner is the argmax of s - ln E. Bits come from a stateless hash of (seed, position, token): no generator state to
// keep or to order.
//
// Computing E exactly takes two accurate logarithms, but a token can only win when even the luckiest reading of its
// bits beats the best so far. `luck_bound` is such a reading from one fast logarithm, so that a full row costs about
// one pass over memory.
#pragma once
#include <cfloat>

#include "cuda/common/device.cuh"

namespace pe::cuda {

// An unsigned integer that orders as the float does, with -0 equal to +0. NaN and +inf are kept out by the callers.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
constexpr uint32_t kMaskedKey = 0x007fffffu;  // order_key(-inf)

__device__ __forceinline__ uint32_t mix_bits(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}
__device__ __forceinline__ uint32_t draw_key(uint64_t seed, int32_t position) {
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  return mix_bits(mix_bits(mix_bits(low + 0x9e3779b9u) ^ high) + static_cast<uint32_t>(position));
}
__device__ __forceinline__ uint32_t draw_bits(uint32_t key, int32_t token) {
  return mix_bits(mix_bits(key ^ static_cast<uint32_t>(token)) + key);
}

// Exponential with rate 1 from 32 bits. Each half uses the logarithm that is accurate there; 2^32 - h - 0.5 is ~h +
// 0.5.
__device__ __forceinline__ float exponential(uint32_t h) {
  constexpr float kUnit = 2.3283064365386963e-10f;  // 2^-32
  if (h >> 31) return -log1pf(-(static_cast<float>(~h) + 0.5f) * kUnit);
  return -logf((static_cast<float>(h) + 0.5f) * kUnit);
}

// No less than -ln E: E >= 1 - e^-E = u, u the uniform that log1p reads above. Callers add kBoundSlack for the
// rounding.
__device__ __forceinline__ float luck_bound(uint32_t h) {
  constexpr float kLn2 = 0.69314718f;
  return kLn2 * (32.0f - __log2f(static_cast<float>(~h) + 0.5f));
}
constexpr float kBoundSlack = 1e-3f, kRelativeSlack = 1e-5f;

// One runner's best token. `bound` is any score already reached by anybody: a token below it need not be computed.
struct Race {
  uint32_t key;
  float best = -INFINITY;
  int32_t token = -1;

  __device__ __forceinline__ explicit Race(uint32_t draw_key) : key(draw_key) {}

  // `approximate` is s to within 2 ulp. Written so that a NaN (s overflowed) counts as a possible winner.
  __device__ __forceinline__ bool may_win(float approximate, uint32_t bits, float bound) const {
    const float slack = fmaf(fabsf(approximate), kRelativeSlack, kBoundSlack);
    return !(approximate + luck_bound(bits) + slack < bound);
  }
  __device__ __forceinline__ bool offer(float s, int32_t id, uint32_t bits) {
    const float score = s - logf(exponential(bits));
    if (!(score > best) && !(score == best && id < token)) return false;
    best = score;
    token = id;
    return true;
  }
};

// (score, lowest id among equals) as one integer to maximise; 0 = no token, kBadRow = the row failed.
constexpr uint64_t kBadRow = ~uint64_t{0};
__device__ __forceinline__ uint64_t pack_winner(float score, int32_t token) {
  return token < 0 ? 0 : uint64_t{order_key(score)} << 32 | static_cast<uint32_t>(~token);
}
__device__ __forceinline__ int32_t token_of(uint64_t winner) {
  return winner == 0 || winner == kBadRow ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(winner));
}

}  // namespace pe::cuda
