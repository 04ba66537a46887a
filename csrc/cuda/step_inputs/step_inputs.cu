// SPDX-License-Identifier: Apache-2.0
// The inputs of one forward pass from the step's description and the persistent rows; metadata never leaves the device.
// rows, num_new_tokens, num_computed, prompt_offsets [S] -> query_start[S + 1], seq_lens[S], last_indices[S],
// input_ids, positions, slot_mapping [T]; padding as in pe/step_inputs.h
// grid ceil(T / 1024), by the upper bound T alone · block 256 · smem S + 1 ints
// traffic: S * 16 bytes per CTA (from the L2), T * 16 bytes written -> launch-bound; not yet measured
//
// Every CTA scans all S sequences for itself: 4 KiB of L2 reads for 256 of them cost less than a second kernel or a
// wait between CTAs. Then each token finds its sequence by bisection in shared memory.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/elementwise/gather.cuh"
#include "pe/step_inputs.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensPerCta = 1024;
constexpr int64_t kMaxSeqs = 32768;  // their starts fill 128 KiB of shared memory

// Fills start[0 .. num_seqs] in shared memory.
__device__ void scan_starts(const StepInputsParams& p, int* start, int* scratch) {
  const int num_seqs = static_cast<int>(p.num_seqs);
  const int per_thread = (num_seqs + kThreads - 1) / kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * per_thread, num_seqs);
  const int last = min(first + per_thread, num_seqs);
  int mine = 0;
  for (int i = first; i < last; ++i) mine += p.rows[i] < 0 ? 0 : p.num_new_tokens[i];
  int total = 0;
  int before = block_exclusive_sum<kThreads>(mine, scratch, &total);
  for (int i = first; i < last; ++i) {
    start[i] = before;
    before += p.rows[i] < 0 ? 0 : p.num_new_tokens[i];
  }
  if (threadIdx.x == 0) start[num_seqs] = total;
  __syncthreads();
}

__device__ void write_sequences(const StepInputsParams& p, const int* start) {
  for (int i = static_cast<int>(threadIdx.x); i < p.num_seqs; i += kThreads) {
    const int count = start[i + 1] - start[i];
    p.query_start[i] = start[i];
    p.seq_lens[i] = p.rows[i] < 0 ? 0 : p.num_computed[i] + count;
    p.last_indices[i] = count > 0 ? start[i + 1] - 1 : 0;
  }
  if (threadIdx.x == 0) p.query_start[p.num_seqs] = start[p.num_seqs];
}

// The last sequence that starts at or before token t; empty ones share their start with the next and lose to it.
__device__ __forceinline__ int sequence_of(int t, const int* start, int num_seqs) {
  int low = 0, high = num_seqs;  // start[low] <= t < start[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (start[middle] <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ __forceinline__ void write_token(const StepInputsParams& p, const int* start, int t) {
  const int num_seqs = static_cast<int>(p.num_seqs);
  if (t >= start[num_seqs]) {
    p.input_ids[t] = 0;
    p.positions[t] = 0;
    p.slot_mapping[t] = -1;
    return;
  }
  const int s = sequence_of(t, start, num_seqs);
  const int64_t row = p.rows[s];
  const int within = t - start[s];
  const int position = p.num_computed[s] + within;
  const int offset = p.prompt_offsets[s];
  const int block = p.block_tables[row * p.block_table_stride + position / p.block_size];
  p.input_ids[t] = offset < 0 ? p.last_tokens[row] : p.prompt_ids[int64_t{offset} + within];
  p.positions[t] = position;
  p.slot_mapping[t] = int64_t{block} * p.block_size + position % p.block_size;
}

__global__ void __launch_bounds__(kThreads) step_inputs_kernel(StepInputsParams p) {
  PE_DYNAMIC_SMEM(int, start);
  __shared__ int scratch[kThreads / kWarpSize];
  release_successor();
  wait_for_predecessor();
  scan_starts(p, start, scratch);
  if (blockIdx.x == 0) write_sequences(p, start);
  for (int i = static_cast<int>(threadIdx.x); i < kTokensPerCta; i += kThreads) {
    const int64_t t = int64_t{blockIdx.x} * kTokensPerCta + i;
    if (t < p.num_tokens) write_token(p, start, static_cast<int>(t));
  }
}

__global__ void __launch_bounds__(kThreads) store_tokens_kernel(StoreTokensParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.num_sampled || p.rows[i] < 0 || p.token_ids[i] < 0) return;
  p.last_tokens[p.rows[i]] = p.token_ids[i];
}

__global__ void __launch_bounds__(kThreads) update_block_tables_kernel(UpdateBlockTablesParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.num_entries || p.entries[3 * i] < 0) return;
  p.block_tables[p.entries[3 * i] * p.block_table_stride + p.entries[3 * i + 1]] = p.entries[3 * i + 2];
}

dim3 ctas_for(int64_t items, int64_t per_cta) { return dim3(static_cast<unsigned>(div_ceil(items, per_cta))); }

}  // namespace

void step_inputs(const StepInputsParams& p, Stream stream) {
  constexpr const char* kOp = "step_inputs";
  PE_CHECK(kOp, p.num_seqs >= 0 && p.num_seqs <= kMaxSeqs,
           "num_seqs must be 0 .. " + std::to_string(kMaxSeqs) + ", got " + std::to_string(p.num_seqs));
  PE_CHECK(kOp, p.num_tokens >= 0 && p.num_tokens < (int64_t{1} << 31),
           "num_tokens out of range: " + std::to_string(p.num_tokens));
  PE_CHECK(kOp, p.block_size > 0, "block_size must be positive, got " + std::to_string(p.block_size));
  const int64_t tokens = p.num_tokens > 0 ? p.num_tokens : 1;  // the sequences are written even when no token is
  launch_overlapping(step_inputs_kernel, ctas_for(tokens, kTokensPerCta), dim3(kThreads),
                     static_cast<size_t>(p.num_seqs + 1) * sizeof(int), stream, kOp, p);
}

void store_tokens(const StoreTokensParams& p, Stream stream) {
  launch_overlapping(store_tokens_kernel, ctas_for(p.num_sampled, kThreads), dim3(kThreads), 0, stream, "store_tokens",
                     p);
}

void update_block_tables(const UpdateBlockTablesParams& p, Stream stream) {
  launch_overlapping(update_block_tables_kernel, ctas_for(p.num_entries, kThreads), dim3(kThreads), 0, stream,
                     "update_block_tables", p);
}

void gather_rows(const GatherRowsParams& p, Stream stream) {
  constexpr const char* kOp = "gather_rows";
  const auto bytes = static_cast<int64_t>(size_of(p.dtype));
  PE_CHECK(
      kOp, p.cols > 0 && p.cols * bytes % 16 == 0,
      "a row must be a positive multiple of 16 bytes, got cols " + std::to_string(p.cols) + " of " + name_of(p.dtype));
  check_aligned16(kOp, "out", p.out, p.out_stride, p.dtype);
  check_aligned16(kOp, "x", p.x, p.x_stride, p.dtype);
  constexpr int64_t kAnyRow = int64_t{1} << 31;
  const Gather rows{
      p.out, p.x, p.indices, kAnyRow, p.out_stride * bytes, p.x_stride * bytes, static_cast<int>(p.cols * bytes / 16)};
  gather(kOp, rows, p.num_indices, stream);
}

}  // namespace pe::cuda
