// SPDX-License-Identifier: Apache-2.0
// Sampling on the CPU (contract: pe/sampling.h): one row per thread at a time, each filter a threshold on the scores.
//
// No row is sorted. Top-k keeps a buffer of what exceeds the k-th largest so far, which for logits in no particular
// order takes in k ln(V / k) values; top-p is a quickselect by mass over the tokens that can matter: those with so
// little mass that all of them together stay below 1 - top_p are left out at once.
//
// Scratch: four rows of scores per thread, which grow to the largest vocabulary seen.
#include "pe/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "isa.h"
#include "pe/parallel.h"
#include "run.h"
#include "sampling_rows.h"

namespace pe::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const SampleKernels& sample_kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512Bf16) return sample_kernels_avx512();
  if (current_isa() >= Isa::kAvx2) return sample_kernels_avx2();
#endif
  return sample_kernels_generic();
}

// The parameters of one row.
struct Filters {
  float temperature = 0, top_p = 1, min_p = 0;
  int64_t top_k = 0;
  uint32_t key = 0;
};

class RowSampler {
 public:
  int32_t sample(const SampleKernels& kernels, const float* logits, int64_t vocab_size, const Filters& f) {
    kernels_ = &kernels;
    if (f.temperature == 0) return kernels_->greedy(logits, vocab_size);
    reserve(vocab_size);
    top_ = kernels_->scale(logits, vocab_size, f.temperature, scores_.data());
    if (!(top_ > -kInfinity && top_ < kInfinity)) return -1;
    const int64_t padded = round_up(vocab_size, kScorePadding);
    float low = -FLT_MAX;  // -inf is a mask
    if (f.min_p > 0) low = std::max(low, top_ + std::log(f.min_p));
    if (f.top_k > 0 && f.top_k < vocab_size) low = std::max(low, kth_largest(padded, f.top_k));
    low = std::min(low, top_);  // the largest score survives, whatever the parameters
    if (f.top_p >= 1) return kernels_->draw(scores_.data(), nullptr, padded, top_, low, f.key);
    return sample_top_p(padded, low, f);
  }

 private:
  void reserve(int64_t vocab_size) {
    const size_t size = static_cast<size_t>(round_up(vocab_size, kScorePadding) + kScorePadding);
    if (scores_.size() >= size) return;
    for (auto* buffer : {&scores_, &kept_, &active_, &next_}) buffer->resize(size);
    ids_.resize(size);
  }

  // The k-th largest of scores_[0, n); -FLT_MAX when fewer are not masked.
  float kth_largest(int64_t n, int64_t k) {
    constexpr int64_t kBlock = 512;
    const size_t limit = static_cast<size_t>(2 * k + kBlock);
    if (values_.size() < limit + kBlock + kScorePadding) values_.resize(limit + kBlock + kScorePadding);
    const auto shrink = [&](size_t count) {
      std::nth_element(values_.begin(), values_.begin() + (k - 1), values_.begin() + count, std::greater<float>());
      return values_[k - 1];
    };
    float low = -FLT_MAX;
    size_t count = 0;
    for (int64_t i = 0; i < n; i += kBlock) {
      count += kernels_->collect(scores_.data() + i, std::min(kBlock, n - i), low, kInfinity, values_.data() + count,
                                 nullptr);
      if (count <= limit) continue;
      low = std::nextafter(shrink(count), kInfinity);
      count = static_cast<size_t>(k);
    }
    return count >= static_cast<size_t>(k) ? shrink(count) : -FLT_MAX;
  }

  int32_t sample_top_p(int64_t n, float low, const Filters& f) {
    uint64_t total = 0;
    if (low == -FLT_MAX) {
      total = kernels_->mass(scores_.data(), n, top_, low);
      // Tokens below this hold less than 1 - top_p together, so what is larger than one of them holds more than top_p.
      const double least = (1.0 - f.top_p) * static_cast<double>(total) * 0x1p-40 / static_cast<double>(n);
      low = std::max(low, static_cast<float>(top_ + std::log(least) - 1e-3 * (1 + std::abs(top_) * 1e-3)));
    }
    const int64_t count = pad(kept_, kernels_->collect(scores_.data(), n, low, kInfinity, kept_.data(), ids_.data()));
    if (total == 0) total = kernels_->mass(kept_.data(), count, top_, low);
    low = std::max(low, nucleus(count, static_cast<double>(f.top_p) * static_cast<double>(total)));
    return kernels_->draw(kept_.data(), ids_.data(), count, top_, low, f.key);
  }

  // The smallest of kept_[0, n) such that the larger ones hold less than `limit`.
  float nucleus(int64_t n, double limit) {
    const float* active = kept_.data();
    float least = top_;
    uint64_t above = 0;  // what is larger than all active scores
    while (n > 0) {
      const float pivot = middle(active, n);
      if (static_cast<double>(above + kernels_->mass(active, n, top_, std::nextafter(pivot, kInfinity))) >= limit) {
        n = narrow(&active, n, std::nextafter(pivot, kInfinity), kInfinity);
        continue;
      }
      least = pivot;
      above += kernels_->mass(active, n, top_, pivot);
      if (static_cast<double>(above) >= limit) break;
      n = narrow(&active, n, -FLT_MAX, pivot);
    }
    return least;
  }

  // The active scores in [low, high) become the active ones.
  int64_t narrow(const float** active, int64_t n, float low, float high) {
    n = pad(next_, kernels_->collect(*active, n, low, high, next_.data(), nullptr));
    std::swap(active_, next_);
    *active = active_.data();
    return n;
  }

  static float middle(const float* scores, int64_t n) {
    while (n > 1 && scores[n - 1] == -kInfinity) --n;  // padding
    const float a = scores[0], b = scores[n / 2], c = scores[n - 1];
    return std::max(std::min(a, b), std::min(std::max(a, b), c));
  }

  static int64_t pad(std::vector<float>& scores, int64_t n) {
    for (; n % kScorePadding != 0; ++n) scores[n] = -kInfinity;
    return n;
  }

  const SampleKernels* kernels_ = nullptr;
  float top_ = 0;
  std::vector<float> scores_, kept_, active_, next_, values_;
  std::vector<int32_t> ids_;
};

uint32_t draw_key(int64_t seed, int32_t position) {
  const auto low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  return mix(mix(mix(low + 0x9e3779b9u) ^ high) + static_cast<uint32_t>(position));
}

}  // namespace

void sample(const SampleParams& params) {
  PE_CHECK("sample", params.vocab_size > 0 && params.vocab_size <= INT32_MAX,
           "vocab_size must be positive and fit in an int32, got " + std::to_string(params.vocab_size));
  PE_CHECK("sample", params.num_rows >= 0, "num_rows must not be negative, got " + std::to_string(params.num_rows));
  run(params, [](const SampleParams& p) {
    parallel_for(p.num_rows, 1, [&p](int64_t begin, int64_t end) {
      static thread_local RowSampler sampler;
      const SampleKernels& kernels = sample_kernels();
      for (int64_t b = begin; b < end; ++b) {
        const int64_t r = p.param_rows ? p.param_rows[b] : b;
        if (r < 0) continue;
        Filters f;
        f.temperature = p.temperature[r];
        if (f.temperature != 0) {
          f.top_p = p.top_p[r], f.min_p = p.min_p[r], f.top_k = p.top_k[r];
          f.key = draw_key(p.seeds[r], p.positions[b]);
        }
        p.token_ids[b] = sampler.sample(kernels, p.logits + b * p.logits_stride, p.vocab_size, f);
      }
    });
  });
}

}  // namespace pe::cpu
