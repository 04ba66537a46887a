// SPDX-License-Identifier: Apache-2.0
// Exact selection without sorting: the smallest threshold above which less than `target` of the weight lies. Weight 1
// makes it top-k, weight exp(s - max) top-p.
//
// The values are histogrammed into 2048 bins from the largest down and the bin in which the running weight reaches the
// target is cut again, until it holds one distinct value. The first cut is linear in s, because logits are spread over
// s and not over the exponents of its floating-point form; the further ones are over the integer order keys and
// therefore end. Weights are integers (masses in 2^-40), summed as two 32-bit words with a carry, because shared memory
// has no native 64-bit atomic add: the result does not depend on the order of the atomics.
#pragma once
#include "cuda/common/reduce.cuh"
#include "cuda/sampling/row.cuh"

namespace pe::cuda {

constexpr int kFinishThreads = 512;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kFinishThreads;
constexpr int kBinBits = 11;
constexpr int kMaxCandidates = 2048;
constexpr float kSpan = 32;  // nats below the maximum that the linear bins resolve; less than 2^-40 of mass is lower

struct FinishShared {
  uint32_t low[kBins], high[kBins];  // the histogram; `low` lists groups while candidates are collected
  float s[kMaxCandidates];
  int32_t token[kMaxCandidates];
  uint64_t scratch[kFinishThreads / kWarpSize];
  uint64_t above;  // weight above the bin that was chosen
  int32_t bin;     // that bin
  int32_t num_groups, num_candidates;
  uint32_t bound;  // order key of the best score so far
};

// block_reduce needs a barrier between two uses of its scratch; paying it here keeps the callers simple.
template <typename T, typename Op>
__device__ __forceinline__ T reduce(FinishShared& shared, T x, Op op) {
  __syncthreads();
  return block_reduce<kFinishThreads>(x, op, reinterpret_cast<T*>(shared.scratch));
}

// The survivors so far, as collected in shared memory.
struct Candidates {
  const FinishShared& shared;
  int32_t count;

  template <typename Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for (int i = threadIdx.x; i < count; i += kFinishThreads) visit(shared.s[i], shared.token[i]);
  }
};

// The whole row, read again from global memory (mostly L2). Two loads are in flight per thread: registers.
struct WholeRow {
  const Row& row;

  template <typename Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    constexpr int kStep = kFinishThreads * 4, kDepth = 2;
    for (int base = threadIdx.x * 4; base < row.vocab_size; base += kStep * kDepth) {
      float4 x[kDepth];
#pragma unroll
      for (int i = 0; i < kDepth; ++i) x[i] = row.load(base + i * kStep);
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        const float lane[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (lane[j] > -INFINITY) visit(row.scaled(lane[j]), base + i * kStep + j);
        }
      }
    }
  }
};

struct CountWeight {
  __device__ __forceinline__ uint64_t operator()(float) const { return 1; }
};
struct MassWeight {
  float largest;
  __device__ __forceinline__ uint64_t operator()(float s) const {
    constexpr float kOne = 1099511627776.0f;  // 2^40; a row of 2^23 tokens still fits 64 bits
    return __float2ull_rz(expf(s - largest) * kOne);
  }
};

// Whoever read the histogram last has passed a barrier since: find_bin and collect end with one.
__device__ __forceinline__ void clear_histogram(FinishShared& shared) {
  for (int i = threadIdx.x; i < kBins; i += kFinishThreads) shared.low[i] = shared.high[i] = 0;
  __syncthreads();
}

__device__ __forceinline__ void add_weight(FinishShared& shared, int bin, uint64_t weight) {
  const uint32_t low = static_cast<uint32_t>(weight);
  const uint32_t old = atomicAdd(&shared.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + (old + low < old ? 1u : 0u);
  if (high) atomicAdd(&shared.high[bin], high);
}

// Finds the bin in which the running weight, from bin 0 on, reaches target(total). False: there is not that much.
template <typename Target>
__device__ __forceinline__ bool find_bin(FinishShared& shared, Target target, uint64_t* remaining) {
  __syncthreads();
  uint64_t own = 0, total;
  const int first = threadIdx.x * kBinsPerThread;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) own += uint64_t{shared.high[first + i]} << 32 | shared.low[first + i];
  uint64_t running = block_exclusive_sum<kFinishThreads>(own, shared.scratch, &total);
  const uint64_t goal = target(total);
  if (total < goal) return false;
  if (running < goal && goal <= running + own) {
    int bin = first;
    for (;; ++bin) {
      const uint64_t weight = uint64_t{shared.high[bin]} << 32 | shared.low[bin];
      if (goal <= running + weight) break;
      running += weight;
    }
    shared.bin = bin;
    shared.above = running;
  }
  __syncthreads();
  *remaining = goal - shared.above;
  return true;
}

// Cuts the key interval [low, high], in which `goal` of the weight has to be found, down to one key.
template <typename Source, typename Weight>
__device__ __forceinline__ uint32_t refine(FinishShared& shared, const Source& source, Weight weight, uint32_t low,
                                           uint32_t high, uint64_t goal) {
  while (low != high) {
    const int shift = max(kWarpSize - __clz(static_cast<int>(high - low)) - kBinBits, 0);
    clear_histogram(shared);
    source.for_each([&](float s, int32_t) {
      const uint32_t key = order_key(s);
      if (key >= low && key <= high) add_weight(shared, static_cast<int>((high - key) >> shift), weight(s));
    });
    find_bin(shared, [&](uint64_t) { return goal; }, &goal);
    high -= static_cast<uint32_t>(shared.bin) << shift;
    low = max(low, high - ((1u << shift) - 1));
  }
  return low;
}

// The smallest value, among those of the source that are >= lowest, above which less than target(total weight) lies.
// False when the total is less than the target: then nothing is to be cut, or the source is not enough.
template <typename Source, typename Weight, typename Target>
__device__ __forceinline__ bool select_threshold(FinishShared& shared, const Source& source, Weight weight,
                                                 Target target, float largest, float lowest, float* threshold) {
  const float span = fminf(largest - lowest, kSpan);
  const float bins_per_nat = span > 0 ? (kBins - 1) / span : 0.0f;
  const auto bin_of = [&](float s) { return static_cast<int>(fminf((largest - s) * bins_per_nat, kBins - 1)); };
  clear_histogram(shared);
  source.for_each([&](float s, int32_t) {
    if (s >= lowest) add_weight(shared, bin_of(s), weight(s));
  });
  uint64_t goal;
  if (!find_bin(shared, target, &goal)) return false;
  uint32_t low = ~0u, high = 0;
  const int bin = shared.bin;
  source.for_each([&](float s, int32_t) {
    if (s < lowest || bin_of(s) != bin) return;
    low = min(low, order_key(s));
    high = max(high, order_key(s));
  });
  low = reduce(shared, low, Min{});
  high = reduce(shared, high, Max{});
  *threshold = value_of(refine(shared, source, weight, low, high, goal));
  return true;
}

}  // namespace pe::cuda
