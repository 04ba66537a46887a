// SPDX-License-Identifier: Apache-2.0
// Log-probabilities (contract: pe/logits.h) in two kernels that read each logit once and sort nothing.
//
// logits[B,V] fp32, target_ids[B] -> target_logprobs, target_ranks [B], top_ids, top_logprobs [B,k]; k <= 64; rows
// whose target is outside the vocabulary end at once scan: grid (B, ceil(V / 8192)) · block 256 · 32 logits per thread,
// in registers throughout · smem 16 KiB
//   -> the segment's maximum, sum of exponentials, number of logits above the target, and k largest in order
// finish: grid (B) · block 128 · merges the segments, in ascending order
// traffic: 4 B V bytes, + 8 k per segment out and in -> HBM-bound from some 16 rows on, latency-bound below
// floor: B=64, V=152064: 39 MB = 13 us at 3.0 TB/s; not yet measured
//
// The k largest: logit and token make one integer (rank_key), so that no two are equal. The k-th largest of the 256
// threads' best is found bit by bit; exactly k threads reach it, so at most 32 k of their logits do, the k largest
// among them. Each of those counts how many are above it, which is its place. Nothing depends on the order of the
// atomics.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/sampling/draw.cuh"
#include "pe/logits.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "logprobs";

constexpr int kScanBlock = 256;
constexpr int kVectors = 8;              // of four logits per thread, a block apart, all in flight together
constexpr int kLogits = kVectors * 4;    // per thread
constexpr int kStep = kScanBlock * 4;    // tokens from one vector of a thread to its next
constexpr int kPart = kStep * kVectors;  // tokens per segment
constexpr int kMaxSurvivors = kMaxLogprobs * kLogits;
constexpr int kFinishBlock = 128;
static_assert(kMaxLogprobs <= kScanBlock, "the k-th largest is looked for among the threads' best");

struct SegmentSums {
  float largest, sum;  // sum of e^(x - largest)
  int32_t num_larger;  // logits strictly larger than the target's
};

struct Segments {
  SegmentSums* sums;  // [num_rows, num_segments]
  uint64_t* lists;    // [num_rows, num_segments, k] rank keys, descending; 0: none
  int32_t num_segments;
};

// (logit, token) as one integer that is never 0: the larger logit is larger, among equals the lower id. A NaN stands
// anywhere; it makes the sum a NaN and so all log-probabilities.
__device__ __forceinline__ uint64_t rank_key(float x, int32_t token) {
  return uint64_t{order_key(x)} << 32 | static_cast<uint32_t>(~token);
}
__device__ __forceinline__ float logit_of(uint64_t key) { return value_of(static_cast<uint32_t>(key >> 32)); }
__device__ __forceinline__ int32_t id_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

__device__ __forceinline__ bool is_padding(const LogprobsParams& p, int32_t target) {
  return target < 0 || target >= p.vocab_size;
}

// ---- scan -----------------------------------------------------------------------------------------------------------

// What one thread holds of a segment: x[4 i + j] is the logit of token first + i * kStep + j, -inf past the end.
struct Share {
  float x[kLogits];
  int first, vocab_size;

  __device__ __forceinline__ int token(int i) const { return first + i / 4 * kStep + i % 4; }
  __device__ __forceinline__ uint64_t key(int i) const {
    return token(i) < vocab_size ? rank_key(x[i], token(i)) : uint64_t{0};
  }
};

__device__ __forceinline__ void load_share(const float* logits, Share* share) {
  const bool vectors = reinterpret_cast<uintptr_t>(logits) % 16 == 0;
#pragma unroll
  for (int i = 0; i < kLogits; i += 4) {
    const int token = share->token(i);
    if (vectors && token + 4 <= share->vocab_size) {
      const float4 v = *reinterpret_cast<const float4*>(logits + token);
      share->x[i] = v.x, share->x[i + 1] = v.y, share->x[i + 2] = v.z, share->x[i + 3] = v.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) share->x[i + j] = token + j < share->vocab_size ? logits[token + j] : -INFINITY;
    }
  }
}

struct ScanShared {
  uint64_t survivors[kMaxSurvivors];
  uint64_t best[kScanBlock / kWarpSize];
  float sum[kScanBlock / kWarpSize];
  int32_t larger[kScanBlock / kWarpSize];
  int32_t num_survivors;
};

// The smallest prefix of bits that exactly k of the threads' best reach, or 1 when no more than k threads have any.
__device__ __forceinline__ uint64_t threshold_of(uint64_t best, int k) {
  if (__syncthreads_count(best != 0) <= k) return 1;
  uint64_t found = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t trial = found | uint64_t{1} << bit;
    const int count = __syncthreads_count(best >= trial);
    if (count >= k) found = trial;
    if (count == k) break;
  }
  return found;
}

// list[0 .. k) become the k largest keys of the segment.
__device__ __forceinline__ void select_largest(ScanShared& shared, const Share& share, uint64_t best, int k,
                                               uint64_t* list) {
  if (threadIdx.x == 0) shared.num_survivors = 0;
  const uint64_t threshold = threshold_of(best, k);  // has a barrier
  if (best >= threshold) {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
      const uint64_t key = share.key(i);
      if (key >= threshold) shared.survivors[atomicAdd(&shared.num_survivors, 1)] = key;
    }
  }
  __syncthreads();
  const int num_survivors = shared.num_survivors;
  for (int i = static_cast<int>(threadIdx.x); i < num_survivors; i += kScanBlock) {
    const uint64_t key = shared.survivors[i];
    int place = 0;
    for (int j = 0; j < num_survivors; ++j) place += shared.survivors[j] > key;
    if (place < k) list[place] = key;
  }
  for (int i = num_survivors + static_cast<int>(threadIdx.x); i < k; i += kScanBlock) list[i] = 0;
}

__global__ void __launch_bounds__(kScanBlock) scan_kernel(LogprobsParams p, Segments segments) {
  __shared__ ScanShared shared;
  release_successor();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int32_t target = p.target_ids[row];
  if (is_padding(p, target)) return;
  const float* const logits = p.logits + row * p.logits_stride;
  const float target_logit = logits[target];
  Share share;
  share.first = static_cast<int>(blockIdx.y) * kPart + static_cast<int>(threadIdx.x) * 4;
  share.vocab_size = static_cast<int>(p.vocab_size);
  load_share(logits, &share);

  uint64_t best = 0;
  int num_larger = 0;
#pragma unroll
  for (int i = 0; i < kLogits; ++i) {
    const uint64_t key = share.key(i);
    best = key > best ? key : best;
    num_larger += share.x[i] > target_logit;
  }
  const float largest = logit_of(block_max<kScanBlock>(best, shared.best));
  const float shift = largest > -INFINITY ? largest : 0.0f;  // a segment of masked tokens has the sum 0
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLogits; ++i) sum += expf(share.x[i] - shift);
  sum = block_sum<kScanBlock>(sum, shared.sum);
  num_larger = block_sum<kScanBlock>(num_larger, shared.larger);
  const int64_t segment = row * segments.num_segments + blockIdx.y;
  if (threadIdx.x == 0) segments.sums[segment] = {largest, sum, num_larger};
  if (p.k > 0) select_largest(shared, share, best, p.k, segments.lists + segment * p.k);
}

// ---- finish ---------------------------------------------------------------------------------------------------------

struct RowSums {
  float largest, log_sum;
  int32_t num_larger;
  __device__ __forceinline__ float logprob(float x) const { return (x - largest) - log_sum; }
};

__device__ __forceinline__ RowSums merge(const SegmentSums* sums, int num_segments) {
  RowSums row{-INFINITY, 0, 0};
  for (int s = 0; s < num_segments; ++s) {
    row.largest = fmaxf(row.largest, sums[s].largest);
    row.num_larger += sums[s].num_larger;
  }
  float sum = 0;
  for (int s = 0; s < num_segments; ++s) sum += sums[s].sum * expf(sums[s].largest - row.largest);
  row.log_sum = logf(sum);
  return row;
}

// How many keys of all lists are larger, k at most: each list is read only as far as they are.
__device__ __forceinline__ int place_of(uint64_t key, const uint64_t* lists, int num_segments, int k) {
  int place = 0;
  for (int s = 0; s < num_segments && place < k; ++s) {
    for (int i = 0; i < k && lists[s * k + i] > key; ++i) ++place;
  }
  return place;
}

__global__ void __launch_bounds__(kFinishBlock) finish_kernel(LogprobsParams p, Segments segments) {
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int32_t target = p.target_ids[row];
  if (is_padding(p, target)) return;
  const int num_segments = segments.num_segments, k = p.k;
  const RowSums sums = merge(segments.sums + row * num_segments, num_segments);
  if (threadIdx.x == 0) {
    p.target_logprobs[row] = sums.logprob(p.logits[row * p.logits_stride + target]);
    p.target_ranks[row] = sums.num_larger + 1;
  }
  int32_t* const ids = p.top_ids + row * k;
  float* const logprobs = p.top_logprobs + row * k;
  const uint64_t* const lists = segments.lists + row * num_segments * k;
  for (int i = static_cast<int>(threadIdx.x); i < num_segments * k; i += kFinishBlock) {
    const uint64_t key = lists[i];
    const int place = key == 0 ? k : place_of(key, lists, num_segments, k);
    if (place >= k) continue;
    ids[place] = id_of(key);
    logprobs[place] = sums.logprob(logit_of(key));
  }
  for (int64_t i = p.vocab_size + threadIdx.x; i < k; i += kFinishBlock) {
    ids[i] = -1;
    logprobs[i] = -INFINITY;
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

constexpr size_t kAlignment = 256;
constexpr int64_t kMaxVocabSize = int64_t{1} << 27;

size_t sums_bytes(int64_t num_rows, int64_t num_segments) {
  return round_up(static_cast<size_t>(num_rows * num_segments) * sizeof(SegmentSums), kAlignment);
}

void check(const LogprobsParams& p, const Workspace& workspace) {
  PE_CHECK(kOp, p.vocab_size >= 1 && p.vocab_size < kMaxVocabSize,
           "vocab_size must be in [1, 2^27), got " + std::to_string(p.vocab_size));
  PE_CHECK(kOp, p.num_rows >= 0 && p.num_rows <= INT32_MAX,
           "num_rows must be in [0, 2^31), got " + std::to_string(p.num_rows));
  PE_CHECK(kOp, p.k >= 0 && p.k <= kMaxLogprobs,
           "k must be in [0, " + std::to_string(kMaxLogprobs) + "], got " + std::to_string(p.k));
  const size_t needed = logprobs_workspace_bytes(p.num_rows, p.vocab_size, p.k);
  PE_CHECK(kOp, p.num_rows == 0 || (workspace.data != nullptr && workspace.bytes >= needed),
           "needs a workspace of " + std::to_string(needed) + " bytes (logprobs_workspace_bytes), got " +
               std::to_string(workspace.bytes));
}

}  // namespace

size_t logprobs_workspace_bytes(int64_t num_rows, int64_t vocab_size, int32_t k) {
  const int64_t num_segments = div_ceil<int64_t>(vocab_size, kPart);
  return sums_bytes(num_rows, num_segments) + static_cast<size_t>(num_rows * num_segments * k) * sizeof(uint64_t);
}

void logprobs(const LogprobsParams& p, Workspace workspace, Stream stream) {
  check(p, workspace);
  const int64_t num_segments = div_ceil<int64_t>(p.vocab_size, kPart);
  auto* const bytes = static_cast<unsigned char*>(workspace.data);
  const Segments segments{reinterpret_cast<SegmentSums*>(bytes),
                          reinterpret_cast<uint64_t*>(bytes + sums_bytes(p.num_rows, num_segments)),
                          static_cast<int32_t>(num_segments)};
  const unsigned rows = static_cast<unsigned>(p.num_rows);
  launch_overlapping(scan_kernel, dim3(rows, static_cast<unsigned>(num_segments)), dim3(kScanBlock), 0, stream, kOp, p,
                     segments);
  launch_overlapping(finish_kernel, dim3(rows), dim3(kFinishBlock), 0, stream, kOp, p, segments);
}

}  // namespace pe::cuda
