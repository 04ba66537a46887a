// SPDX-License-Identifier: Apache-2.0
// Sampling (contract: pe/sampling.h) in two kernels, without sorting and without a second pass over most rows.
//
// scan: logits[B,V] fp32, read once. grid (B, ceil(V / 16384)) x 256 threads, 64 logits each.
//   greedy rows   -> the largest logit of the segment
//   rows without a filter -> the winner of the segment's exponential race
//   filtered rows -> the maximum of each group of 64 logits
// finish: grid (B) x 512 threads.
//   greedy and unfiltered rows -> the best of the segments' winners
//   filtered rows -> every filter is a threshold on s = logit / temperature, so the survivors are {s >= theta}. The
//   k-th largest of 512 group maxima is a lower bound on the k-th largest logit and a close one (k = 50: about 53
//   logits pass), so only the few groups that reach it are read again. Their members that pass the bound are the
//   candidates; in shared memory theta is found exactly (select.cuh) and the race is run. Without top-k the bound is a
//   guess that holds the nucleus of a usual distribution; the exact mass, over one more pass of the row, proves it.
//   When the candidates are too many or too little, the same code runs over the whole row.
// traffic: 4 B V bytes, + 1/32 of that for the group maxima's way out and in, + 4 B V once more for top-p alone.
// floor: B=64, V=128256: 32.8 MB = 11 us at 3.0 TB/s; B=256: 44 us. All results are independent of the order of the
// atomics.
#include "cuda/common/launch.cuh"
#include "cuda/sampling/select.cuh"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "sample";

// A coarse bound is taken from at most this many of the 512 maxima: the nearer to 512, the more candidates lie above it
// (512 ln(512 / (512 - k)): 1,100 at 448), and at most 2,048 fit.
constexpr int kMaxBound = 448;

struct Partials {
  uint64_t* winners;     // [num_rows, num_segments]
  uint32_t* group_keys;  // [num_rows, num_segments * kScanThreads]; ~0: the group holds a NaN or +inf
  int32_t num_segments;
  __host__ __device__ __forceinline__ int32_t num_groups() const { return num_segments * kScanThreads; }
};

// ---- scan -----------------------------------------------------------------------------------------------------------

// Calls visit(float x[4], index) for the vectors of this thread's group; returns whether the group holds a NaN or +inf.
template <typename Visit>
__device__ __forceinline__ bool scan_group(const Row& row, Visit visit) {
  constexpr int kDepth = 4;  // loads in flight
  const int begin = blockIdx.y * kSegment;
  bool bad = false;
  for (int i = 0; i < kVectorsPerGroup && begin + i * kVectorStep < row.vocab_size; i += kDepth) {
    float4 vectors[kDepth];
    const int index = begin + i * kVectorStep + threadIdx.x * 4;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) vectors[d] = row.load(index + d * kVectorStep);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float x[4] = {vectors[d].x, vectors[d].y, vectors[d].z, vectors[d].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) bad |= !(x[j] < INFINITY);
      visit(x, index + d * kVectorStep);
    }
  }
  return bad;
}

__device__ __forceinline__ uint64_t scan_greedy(const Row& row) {
  float best = -INFINITY;
  int32_t token = -1;
  const bool bad = scan_group(row, [&](const float (&x)[4], int index) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (x[j] > best) {
        best = x[j];
        token = index + j;
      }
    }
  });
  return bad ? kBadRow : pack_winner(best, token);
}

// `shared_bound` is a score that some thread has reached. Reading a stale one costs time, never a different winner.
__device__ __forceinline__ uint64_t scan_plain(const Row& row, volatile uint32_t* shared_bound) {
  const float inverse = 1.0f / row.temperature;
  Race race(row.key);
  const bool bad = scan_group(row, [&](const float (&x)[4], int index) {
    const float bound = value_of(*shared_bound);
    bool better = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t bits = draw_bits(row.key, index + j);
      if (x[j] > -INFINITY && race.may_win(x[j] * inverse, bits, bound)) {
        better |= race.offer(row.scaled(x[j]), index + j, bits);
      }
    }
    if (better && race.best > bound) atomicMax(const_cast<uint32_t*>(shared_bound), order_key(race.best));
  });
  return bad ? kBadRow : pack_winner(race.best, race.token);
}

__device__ __forceinline__ uint32_t scan_filtered(const Row& row) {
  float largest = -INFINITY;
  const bool bad = scan_group(
      row, [&](const float (&x)[4], int) { largest = fmaxf(largest, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]))); });
  return bad ? ~0u : order_key(largest);
}

__global__ void __launch_bounds__(kScanThreads) scan_kernel(SampleParams p, Partials partials) {
  __shared__ uint64_t scratch[kScanThreads / kWarpSize];
  __shared__ uint32_t bound;
  wait_for_predecessor();
  release_successor();  // behind the wait: finish_kernel reads the rows' parameters before its own
  const int row_index = blockIdx.x;
  const Row row = load_row(p, row_index);
  if (row.mode == Mode::kPadding) return;
  if (row.mode == Mode::kFiltered) {
    const int64_t group = static_cast<int64_t>(blockIdx.y) * kScanThreads + threadIdx.x;
    partials.group_keys[row_index * static_cast<int64_t>(partials.num_groups()) + group] = scan_filtered(row);
    return;
  }
  if (threadIdx.x == 0) bound = kMaskedKey;
  __syncthreads();
  uint64_t winner = row.mode == Mode::kGreedy ? scan_greedy(row) : scan_plain(row, &bound);
  winner = block_max<kScanThreads>(winner, scratch);
  if (threadIdx.x == 0) partials.winners[row_index * static_cast<int64_t>(partials.num_segments) + blockIdx.y] = winner;
}

// ---- finish ---------------------------------------------------------------------------------------------------------

// The k-th largest of the block's keys, or a smaller key that no fewer than k keys reach; bit by bit, one barrier each.
__device__ __forceinline__ uint32_t kth_largest(uint32_t key, int k) {
  uint32_t found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t trial = found | 1u << bit;
    const int count = __syncthreads_count(key >= trial);
    if (count >= k) found = trial;
    if (count == k) break;
  }
  return found;
}

// Gathers (s, token) of all logits with s >= bound, if they fit; returns how many there are (a lower bound when they do
// not).
__device__ __forceinline__ int collect(FinishShared& shared, const Row& row, const uint32_t* group_keys, int num_groups,
                                       float bound) {
  if (threadIdx.x == 0) shared.num_groups = shared.num_candidates = 0;
  __syncthreads();
  uint32_t* const list = shared.low;
  for (int g = threadIdx.x; g < num_groups; g += kFinishThreads) {
    const uint32_t key = group_keys[g];
    if (key <= kMaskedKey || row.scaled(value_of(key)) < bound) continue;
    const int place = atomicAdd(&shared.num_groups, 1);
    if (place < kMaxCandidates) list[place] = g;
  }
  __syncthreads();
  const int listed = shared.num_groups;
  if (listed > kMaxCandidates) return listed;  // each holds at least one
  const int vector = threadIdx.x % kVectorsPerGroup;
  const volatile int32_t& found = shared.num_candidates;
  for (int i = threadIdx.x / kVectorsPerGroup; i < listed && found <= kMaxCandidates;
       i += kFinishThreads / kVectorsPerGroup) {
    const int group = static_cast<int>(list[i]);
    const int index = group / kScanThreads * kSegment + vector * kVectorStep + group % kScanThreads * 4;
    if (index >= row.vocab_size) continue;
    const float4 v = row.load(index);
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float s = row.scaled(x[j]);
      if (!(x[j] > -INFINITY) || s < bound) continue;
      const int place = atomicAdd(&shared.num_candidates, 1);
      if (place >= kMaxCandidates) continue;
      shared.s[place] = s;
      shared.token[place] = index + j;
    }
  }
  __syncthreads();
  return shared.num_candidates;
}

template <typename Source>
__device__ __forceinline__ int32_t draw(FinishShared& shared, const Source& source, const Row& row, float threshold) {
  if (threadIdx.x == 0) shared.bound = kMaskedKey;
  __syncthreads();
  volatile uint32_t* const best = &shared.bound;
  Race race(row.key);
  source.for_each([&](float s, int32_t token) {
    if (s < threshold) return;
    const uint32_t bits = draw_bits(row.key, token);
    const float bound = value_of(*best);
    if (!race.may_win(s, bits, bound)) return;
    if (race.offer(s, token, bits) && race.best > bound) atomicMax(&shared.bound, order_key(race.best));
  });
  return token_of(reduce(shared, pack_winner(race.best, race.token), Max{}));
}

// Applies top-k and top-p to the values >= lowest of the source and draws. `total` is the mass that top-p refers to, 0
// when it is that of the source itself. kInsufficient: the source does not hold the nucleus.
constexpr int32_t kInsufficient = -2;

template <typename Source>
__device__ __forceinline__ int32_t filter_and_draw(FinishShared& shared, const Source& source, const Row& row,
                                                   float largest, float lowest, uint64_t total) {
  float threshold = lowest;
  if (row.top_k > 0) {
    const auto target = [&](uint64_t) { return static_cast<uint64_t>(row.top_k); };
    select_threshold(shared, source, CountWeight{}, target, largest, threshold, &threshold);
  }
  if (row.top_p < 1) {
    const auto target = [&](uint64_t held) {
      const double mass = ceil(static_cast<double>(row.top_p) * static_cast<double>(total > 0 ? total : held));
      return mass >= 1 ? static_cast<uint64_t>(mass) : uint64_t{1};  // the largest logits always survive
    };
    const bool enough = select_threshold(shared, source, MassWeight{largest}, target, largest, threshold, &threshold);
    if (!enough) return kInsufficient;
  }
  return draw(shared, source, row, threshold);
}

__device__ __forceinline__ int32_t finish_filtered(FinishShared& shared, const Row& row, const uint32_t* group_keys,
                                                   int num_groups) {
  uint32_t key = 0;
  for (int g = threadIdx.x; g < num_groups; g += kFinishThreads) key = max(key, group_keys[g]);
  const uint32_t top = reduce(shared, key, Max{});
  if (top == ~0u || top <= kMaskedKey) return -1;
  const float largest = row.scaled(value_of(top));
  const float lowest = row.min_p > 0 ? fminf(largest + logf(row.min_p), largest) : -INFINITY;

  float bound = lowest;
  const int wanted = row.top_k > 0 ? row.top_k : row.top_p < 1 ? kMaxBound : 0;
  if (wanted > 0 && wanted <= kMaxBound) {
    const uint32_t found = kth_largest(key, wanted);
    if (found > kMaskedKey) bound = fmaxf(bound, row.scaled(value_of(found)));
  }
  const bool hopeless = bound == -INFINITY && row.vocab_size > kMaxCandidates;
  const int count = hopeless ? kMaxCandidates + 1 : collect(shared, row, group_keys, num_groups, bound);
  const WholeRow whole{row};
  if (count <= kMaxCandidates) {
    uint64_t total = 0;
    if (row.top_k == 0 && row.top_p < 1 && bound > lowest) {  // the nucleus refers to logits below the bound, too
      whole.for_each([&](float s, int32_t) { total += s >= lowest ? MassWeight{largest}(s) : 0; });
      total = reduce(shared, total, Sum{});
    }
    const int32_t token = filter_and_draw(shared, Candidates{shared, count}, row, largest, bound, total);
    if (token != kInsufficient) return token;
  }
  return filter_and_draw(shared, whole, row, largest, lowest, 0);
}

__global__ void __launch_bounds__(kFinishThreads, 2) finish_kernel(SampleParams p, Partials partials) {
  __shared__ FinishShared shared;
  __shared__ Row row;  // read where it is used: seven registers less per thread
  const int row_index = blockIdx.x;
  if (threadIdx.x == 0) row = load_row(p, row_index);
  __syncthreads();
  wait_for_predecessor();
  if (row.mode == Mode::kPadding) return;
  int32_t token;
  if (row.mode == Mode::kFiltered) {
    const int64_t first = row_index * static_cast<int64_t>(partials.num_groups());
    token = finish_filtered(shared, row, partials.group_keys + first, partials.num_groups());
  } else {
    uint64_t winner = 0;
    const uint64_t* const winners = partials.winners + row_index * static_cast<int64_t>(partials.num_segments);
    for (int i = threadIdx.x; i < partials.num_segments; i += kFinishThreads) winner = max(winner, winners[i]);
    token = token_of(reduce(shared, winner, Max{}));
  }
  if (threadIdx.x == 0) p.token_ids[row_index] = token;
}

// ---- host -----------------------------------------------------------------------------------------------------------

constexpr size_t kAlignment = 256;
constexpr int64_t kMaxVocab = int64_t{65535} * kSegment;  // grid.y ends at 65535

size_t winners_bytes(int64_t num_rows, int64_t num_segments) {
  return round_up(static_cast<size_t>(num_rows * num_segments) * sizeof(uint64_t), kAlignment);
}

void check(const SampleParams& p, const Workspace& workspace) {
  PE_CHECK(kOp, p.vocab_size >= 1 && p.vocab_size <= kMaxVocab,
           "vocab_size must be in [1, " + std::to_string(kMaxVocab) + "], got " + std::to_string(p.vocab_size));
  PE_CHECK(kOp, p.num_rows <= INT32_MAX, "num_rows must be below 2^31, got " + std::to_string(p.num_rows));
  PE_CHECK(kOp, p.logits_stride >= p.vocab_size,
           "logits_stride must be at least vocab_size " + std::to_string(p.vocab_size) + ", got " +
               std::to_string(p.logits_stride));
  PE_CHECK(kOp, p.token_ids && p.logits && p.temperature && p.top_p && p.min_p && p.top_k && p.seeds && p.positions,
           "only param_rows may be null");
  const size_t needed = sample_workspace_bytes(p.num_rows, p.vocab_size);
  PE_CHECK(kOp, workspace.data != nullptr && workspace.bytes >= needed,
           "needs a workspace of " + std::to_string(needed) + " bytes (sample_workspace_bytes), got " +
               std::to_string(workspace.bytes));
}

}  // namespace

size_t sample_workspace_bytes(int64_t num_rows, int64_t vocab_size) {
  const int64_t num_segments = div_ceil<int64_t>(vocab_size, kSegment);
  return winners_bytes(num_rows, num_segments) +
         static_cast<size_t>(num_rows * num_segments * kScanThreads) * sizeof(uint32_t);
}

void sample(const SampleParams& p, Workspace workspace, Stream stream) {
  PE_CHECK(kOp, p.num_rows >= 0, "num_rows must not be negative, got " + std::to_string(p.num_rows));
  if (p.num_rows == 0) return;
  check(p, workspace);
  const int64_t num_segments = div_ceil<int64_t>(p.vocab_size, kSegment);
  auto* const bytes = static_cast<unsigned char*>(workspace.data);
  const Partials partials{reinterpret_cast<uint64_t*>(bytes),
                          reinterpret_cast<uint32_t*>(bytes + winners_bytes(p.num_rows, num_segments)),
                          static_cast<int32_t>(num_segments)};
  const unsigned rows = static_cast<unsigned>(p.num_rows), segments = static_cast<unsigned>(num_segments);
  launch_overlapping(scan_kernel, dim3(rows, segments), dim3(kScanThreads), 0, stream, kOp, p, partials);
  launch_overlapping(finish_kernel, dim3(rows), dim3(kFinishThreads), 0, stream, kOp, p, partials);
}

}  // namespace pe::cuda
