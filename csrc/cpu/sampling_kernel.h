// SPDX-License-Identifier: Apache-2.0
// The passes over one row of scores, written over Float.
//
// The draw needs no logarithm per token. A token with hash h beats the best so far, b, when E(h) < e^(score - b); E =
// -ln(1 - c) >= c with c = (2^32 - h - 1/2) 2^-32, so it must have c < e^(score - b): an integer hash and one exp per
// vector. The few tokens that pass are decided exactly, in double precision.
#pragma once
#include <cmath>
#include <limits>

#include "math_vector.h"
#include "sampling_rows.h"

namespace pe::cpu {
namespace {

constexpr int64_t kWidth = Float::kWidth;
static_assert(kScorePadding % kWidth == 0);
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t greedy(const float* logits, int64_t n) {
  Float best = Float::splat(-kInfinity);
  Int best_id = Int::splat(0);
  Mask good = at_most(best, best);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Float x = Float::load(logits + i);
    good = good & less(x, Float::splat(kInfinity));
    const Mask better = less(best, x);
    best = select(better, x, best);
    best_id = select(better, Int::splat(static_cast<int32_t>(i)), best_id);
  }
  bool all_good = (~good).bits() == 0;
  float top = -kInfinity;
  int32_t winner = -1;
  alignas(64) float tops[kWidth];
  alignas(64) int32_t ids[kWidth];
  best.store(tops);
  (best_id + Int::iota()).store(ids);
  for (int lane = 0; lane < kWidth; ++lane) {
    if (tops[lane] > top || (tops[lane] == top && winner >= 0 && ids[lane] < winner))
      top = tops[lane], winner = ids[lane];
  }
  for (; i < n; ++i) {
    all_good = all_good && logits[i] < kInfinity;
    if (logits[i] > top) top = logits[i], winner = static_cast<int32_t>(i);
  }
  return all_good ? winner : -1;
}

float scale(const float* logits, int64_t n, float temperature, float* scores) {
  const Float divisor = Float::splat(temperature);
  Float top = Float::splat(-kInfinity);
  Mask good = at_most(top, top);
  const auto take = [&](const float* from, float* to) __attribute__((always_inline)) {
    const Float s = Float::load(from) / divisor;
    good = good & less(s, Float::splat(kInfinity));
    top = max(s, top);
    s.store(to);
  };
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) take(logits + i, scores + i);
  if (i < n) {
    alignas(64) float tail[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) tail[lane] = i + lane < n ? logits[i + lane] : -kInfinity;
    take(tail, scores + i);
    i += kWidth;
  }
  for (; i % kScorePadding != 0; ++i) scores[i] = -kInfinity;
  return (~good).bits() == 0 ? max_of(top) : std::numeric_limits<float>::quiet_NaN();
}

int64_t collect(const float* scores, int64_t n, float low, float high, float* out, int32_t* out_ids) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kWidth) {
    const Float s = Float::load(scores + i);
    const Mask kept = at_most(Float::splat(low), s) & less(s, Float::splat(high));
    if (kept.bits() == 0) continue;
    const int added = compress(kept, as_int(s), reinterpret_cast<int32_t*>(out + count));
    if (out_ids) compress(kept, Int::iota() + Int::splat(static_cast<int32_t>(i)), out_ids + count);
    count += added;
  }
  return count;
}

// e 2^40 = high 2^20 + low, both of which fit in 32 bits exactly, for 1024 vectors before the lanes overflow.
uint64_t mass(const float* scores, int64_t n, float top, float low) {
  constexpr int64_t kRun = 1024 * kWidth;
  const Float unit = Float::splat(1048576.0f);
  uint64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    Int high_sum = Int::splat(0), low_sum = high_sum;
    for (int64_t i = begin; i < n && i < begin + kRun; i += kWidth) {
      const Float s = Float::load(scores + i);
      const Float e = select(less(s, Float::splat(low)), Float::splat(0.0f), exp_negative(s - Float::splat(top)));
      const Float scaled = e * unit;
      const Int high_part = truncate(scaled);
      high_sum = high_sum + high_part;
      low_sum = low_sum + truncate((scaled - convert(high_part)) * unit);
    }
    alignas(64) int32_t high_lanes[kWidth], low_lanes[kWidth];
    high_sum.store(high_lanes);
    low_sum.store(low_lanes);
    for (int lane = 0; lane < kWidth; ++lane) {
      total += (static_cast<uint64_t>(high_lanes[lane]) << 20) + static_cast<uint64_t>(low_lanes[lane]);
    }
  }
  return total;
}

PE_INLINE Int mix_lanes(Int h) {
  h = h ^ shift_right<16>(h);
  h = h * Int::splat(static_cast<int32_t>(0x85ebca6bu));
  h = h ^ shift_right<13>(h);
  h = h * Int::splat(static_cast<int32_t>(0xc2b2ae35u));
  return h ^ shift_right<16>(h);
}

__attribute__((noinline)) double log_of_exponential(uint32_t key, uint32_t token) {
  const uint32_t h = mix(mix(key ^ token) + key);
  const double e = h >= 0x80000000u ? -std::log1p(-(4294967296.0 - h - 0.5) * 0x1p-32) : -std::log((h + 0.5) * 0x1p-32);
  return std::log(e);
}

struct Winner {
  double score = -std::numeric_limits<double>::infinity();
  int32_t id = -1;

  void offer(double other, int32_t other_id) {
    if (other > score || (other == score && other_id < id)) score = other, id = other_id;
  }
  // The largest float that is not above the score.
  float bound() const {
    const float x = static_cast<float>(score);
    return static_cast<double>(x) > score ? std::nextafter(x, -kInfinity) : x;
  }
};

int32_t draw(const float* scores, const int32_t* ids, int64_t n, float top, float low, uint32_t key) {
  const Int keys = Int::splat(static_cast<int32_t>(key));
  Winner winner;
  float bound = std::nextafter(top - 3.14f, -kInfinity);  // the top token reaches it: ln E <= ln(33 ln 2) = 3.13
  for (int64_t i = 0; i < n; i += kWidth) {
    const Float s = Float::load(scores + i);
    const Mask kept = at_most(Float::splat(low), s);
    if (kept.bits() == 0) continue;
    const Int id = ids ? Int::load(ids + i) : Int::iota() + Int::splat(static_cast<int32_t>(i));
    const Int h = mix_lanes(mix_lanes(keys ^ id) + keys);
    const Float c = convert(shift_right<8>(~h)) * Float::splat(0x1p-24f);  // rounded down
    const Float distance = s - Float::splat(bound);
    const Float zero = Float::splat(0.0f);
    const Float chance = exp_negative(select(less(zero, distance), zero, distance)) * Float::splat(1.0001f);
    for (unsigned bits = (kept & at_most(c, chance)).bits(); bits != 0; bits &= bits - 1) {
      const int64_t j = i + __builtin_ctz(bits);
      const int32_t token = ids ? ids[j] : static_cast<int32_t>(j);
      winner.offer(scores[j] - log_of_exponential(key, static_cast<uint32_t>(token)), token);
      if (winner.bound() > bound) bound = winner.bound();
    }
  }
  return winner.id;
}

constexpr SampleKernels kSampleKernels = {greedy, scale, collect, mass, draw};

}  // namespace
}  // namespace pe::cpu
