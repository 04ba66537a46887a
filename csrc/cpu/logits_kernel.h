// SPDX-License-Identifier: Apache-2.0
// The passes over one row of logits before the draw, written over Float.
//
// Penalties and masks touch few tokens of a vocabulary, so a vector without work costs the read of its history or of
// its mask's word and no access to the logits.
#pragma once
#include <cmath>
#include <limits>

#include "logits_rows.h"
#include "math_vector.h"

namespace pe::cpu {
namespace {

constexpr int64_t kWidth = Float::kWidth;
static_assert(kWidth <= kCollectRoom);
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The vector at row + i; past the end of the row it holds `fill`, and nothing is stored there.
PE_INLINE Float load_up_to(const float* row, int64_t i, int64_t n, float fill) {
  if (i + kWidth <= n) return Float::load(row + i);
  alignas(64) float lanes[kWidth];
  for (int64_t lane = 0; lane < kWidth; ++lane) lanes[lane] = i + lane < n ? row[i + lane] : fill;
  return Float::load(lanes);
}
PE_INLINE void store_up_to(float* row, int64_t i, int64_t n, Float x) {
  if (i + kWidth <= n) return x.store(row + i);
  alignas(64) float lanes[kWidth];
  x.store(lanes);
  for (int64_t lane = 0; i + lane < n; ++lane) row[i + lane] = lanes[lane];
}

// The history of a vector of tokens, one value per 32-bit lane: a bf16 is widened by moving its bits to the upper half.
PE_INLINE Int load_history(const uint16_t* history, int64_t i, int64_t n) {
  alignas(64) uint16_t lanes[kWidth] = {};
  if (i + kWidth > n) {
    for (int64_t lane = 0; i + lane < n; ++lane) lanes[lane] = history[i + lane];
    history = lanes, i = 0;
  }
  return shift_right<16>(as_int(Float::load(reinterpret_cast<const BF16*>(history + i))));
}

void penalize(float* logits, const uint16_t* history, int64_t n, const Penalty& penalty) {
  const Int none = Int::splat(0);
  const Float zero = Float::splat(0.0f), repetition = Float::splat(penalty.repetition);
  const Float frequency = Float::splat(penalty.frequency), presence = Float::splat(penalty.presence);
  for (int64_t i = 0; i < n; i += kWidth) {
    const Int h = load_history(history, i, n);
    const Mask seen = less(none, h);
    if (seen.bits() == 0) continue;
    const Int count = shift_right<17>(shift_left<17>(h));  // without the prompt's bit
    const Float x = load_up_to(logits, i, n, 0.0f);
    Float y = select(less(zero, x), x / repetition, x * repetition);
    y = fnma(frequency, convert(count), y) - select(less(none, count), presence, zero);
    store_up_to(logits, i, n, select(seen, y, x));
  }
}

void mask(float* logits, int64_t n, const int32_t* words, int64_t num_words) {
  alignas(64) int32_t lanes[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = static_cast<int32_t>(1u << (31 - lane));
  const Int to_sign = Int::load(lanes);  // a product with it moves bit `lane` of the word into lane's sign
  const Int none = Int::splat(0);
  const Float forbidden = Float::splat(-kInfinity);
  for (int64_t w = 0; 32 * w < n; ++w) {
    uint32_t word = w < num_words ? static_cast<uint32_t>(words[w]) : 0;
    if (word == ~0u) continue;
    for (int64_t i = 32 * w; i < 32 * (w + 1) && i < n; i += kWidth, word >>= kWidth) {
      const Mask allowed = less(Int::splat(static_cast<int32_t>(word)) * to_sign, none);
      store_up_to(logits, i, n, select(allowed, load_up_to(logits, i, n, 0.0f), forbidden));
    }
  }
}

// Four chains, because one would wait for its own result. The order of the sum depends on n alone.
constexpr int kChains = 4;

template <typename Visit>
PE_INLINE void for_each_in_chains(const float* row, int64_t n, Visit visit) {
  int64_t i = 0;
  for (; i + kChains * kWidth <= n; i += kChains * kWidth) {
    for (int chain = 0; chain < kChains; ++chain) visit(Float::load(row + i + chain * kWidth), chain);
  }
  for (int chain = 0; i < n; i += kWidth, ++chain) visit(load_up_to(row, i, n, -kInfinity), chain);
}

RowSummary summarize(const float* logits, int64_t n, float target) {
  const Float at = Float::splat(target);
  const Int one = Int::splat(1), none = Int::splat(0);
  Float top[kChains];
  Int larger[kChains];
  for (int chain = 0; chain < kChains; ++chain) top[chain] = Float::splat(-kInfinity), larger[chain] = none;
  for_each_in_chains(logits, n, [&](Float x, int chain) __attribute__((always_inline)) {
    top[chain] = max(x, top[chain]);  // a NaN leaves it as it is, and reaches the sum
    larger[chain] = larger[chain] + select(less(at, x), one, none);
  });
  RowSummary summary;
  summary.largest = max_of(max(max(top[0], top[1]), max(top[2], top[3])));
  alignas(64) int32_t lanes[kWidth];
  ((larger[0] + larger[1]) + (larger[2] + larger[3])).store(lanes);
  summary.num_larger = 0;
  for (int lane = 0; lane < kWidth; ++lane) summary.num_larger += lanes[lane];

  const Float largest = Float::splat(summary.largest);
  Float mass[kChains];
  for (Float& m : mass) m = Float::splat(0.0f);
  for_each_in_chains(logits, n, [&](Float x, int chain) __attribute__((always_inline)) {
    mass[chain] = mass[chain] + exp_negative(x - largest);
  });
  summary.log_sum = std::log(sum((mass[0] + mass[1]) + (mass[2] + mass[3])));
  return summary;
}

int64_t collect(const float* logits, int64_t begin, int64_t end, float low, float* out, int32_t* out_ids) {
  int64_t count = 0, i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    const Float x = Float::load(logits + i);
    const Mask kept = at_most(Float::splat(low), x);
    if (kept.bits() == 0) continue;
    const int added = compress(kept, as_int(x), reinterpret_cast<int32_t*>(out + count));
    compress(kept, Int::iota() + Int::splat(static_cast<int32_t>(i)), out_ids + count);
    count += added;
  }
  for (; i < end; ++i) {
    if (logits[i] >= low) out[count] = logits[i], out_ids[count++] = static_cast<int32_t>(i);
  }
  return count;
}

constexpr LogitsKernels kLogitsKernels = {penalize, mask, summarize, collect};

}  // namespace
}  // namespace pe::cpu
