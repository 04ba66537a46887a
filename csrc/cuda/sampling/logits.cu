// SPDX-License-Identifier: Apache-2.0
// The edits of logits before the draw, and the token history behind them (contract: pe/logits.h).
//
// penalties: logits[B,V] fp32 in place, state_rows[B], history[*,V] u16; rows without state end at once
//   grid (B, ceil(V / 2048)) · block 256 · 8 tokens of history per thread in one load; logits only where a token was
//   seen · traffic 2 V bytes per row in use -> launch-bound; floor: B=64, V=152064: 19 MB = 6.5 us at 3.0 TB/s
// mask: logits[B,V] fp32 in place, mask_rows[B], masks[*,W] of 32 bits; rows without mask end at once
//   grid (B, ceil(V / 4096)) · block 256 · 4 vectors of 4 tokens per thread; a logit is written, never read
//   traffic V / 8 + 4 V f bytes per row in use, f forbidden -> HBM-bound; floor: B=64, V=152064, f=1: 40 MB = 13 us
// bias, count_tokens: a thread per entry, per row; no two write one place
// reset_history: grid ceil(V / 8192) · block 512 · smem 32 KiB; every block counts its slice of the vocabulary over all
//   tokens, so that no count leaves shared memory before it is final · traffic 4 N bytes per block from the L2, 2 V
//   written -> launch-bound
// No result depends on the order of threads. Not yet measured.
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "pe/logits.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kPromptBit = 0x8000u, kMaxCount = 0x7fffu;

// ---- penalties ------------------------------------------------------------------------------------------------------

constexpr int kHistoryVector = 8;  // elements of history in 16 bytes
constexpr int kPenaltyTile = kThreads * kHistoryVector;

// history[first .. first + 8), two to a word; zeros past the end.
__device__ __forceinline__ uint4 load_history(const uint16_t* history, int first, int vocab_size) {
  const uint16_t* const from = history + first;
  if (first + kHistoryVector <= vocab_size && reinterpret_cast<uintptr_t>(from) % 16 == 0) return load16(from);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kHistoryVector; ++i) {
    if (first + i < vocab_size) words[i / 2] |= uint32_t{from[i]} << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void __launch_bounds__(kThreads) penalties_kernel(PenaltyParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int64_t r = p.state_rows[row];
  const int first = static_cast<int>(blockIdx.y) * kPenaltyTile + static_cast<int>(threadIdx.x) * kHistoryVector;
  if (r < 0 || first >= p.vocab_size) return;
  const uint4 v = load_history(p.history + r * p.history_stride, first, static_cast<int>(p.vocab_size));
  if ((v.x | v.y | v.z | v.w) == 0) return;
  const float repetition = p.repetition[r], frequency = p.frequency[r], presence = p.presence[r];
  float* const logits = p.logits + row * p.logits_stride + first;
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < kHistoryVector; ++i) {
    const uint32_t history = words[i / 2] >> (i % 2 * 16) & 0xffffu;
    if (history == 0) continue;
    const uint32_t count = history & kMaxCount;
    const float x = logits[i];
    const float y = x > 0 ? __fdiv_rn(x, repetition) : x * repetition;
    logits[i] = fmaf(-frequency, static_cast<float>(count), y) - (count > 0 ? presence : 0.0f);
  }
}

// ---- biases and masks -----------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) bias_kernel(BiasParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.num_entries) return;
  const int64_t row = p.entries[2 * i], token = p.entries[2 * i + 1];
  if (row < 0 || row >= p.num_rows || token < 0 || token >= p.vocab_size) return;
  p.logits[row * p.logits_stride + token] += p.values[i];
}

constexpr int kMaskVectors = 4;  // per thread, a block apart
constexpr int kMaskStep = kThreads * 4;
constexpr int kMaskTile = kMaskStep * kMaskVectors;

__global__ void __launch_bounds__(kThreads) mask_kernel(MaskParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int64_t r = p.mask_rows[row];
  if (r < 0) return;
  const int32_t* const words = p.masks + r * p.mask_stride;
  float* const logits = p.logits + row * p.logits_stride;
  const bool vectors = reinterpret_cast<uintptr_t>(logits) % 16 == 0;
  const int vocab_size = static_cast<int>(p.vocab_size);
  const int begin = static_cast<int>(blockIdx.y) * kMaskTile + static_cast<int>(threadIdx.x) * 4;
#pragma unroll
  for (int j = 0; j < kMaskVectors; ++j) {
    const int first = begin + j * kMaskStep;
    if (first >= vocab_size) return;
    const uint32_t word = first / 32 < p.num_words ? static_cast<uint32_t>(words[first / 32]) : 0;
    const uint32_t allowed = word >> (first % 32) & 15u;
    if (allowed == 0 && vectors && first + 4 <= vocab_size) {
      *reinterpret_cast<float4*>(logits + first) = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(allowed >> i & 1u) && first + i < vocab_size) logits[first + i] = -INFINITY;
    }
  }
}

// ---- the history ----------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) count_tokens_kernel(CountTokensParams p) {
  release_successor();
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.num_rows) return;
  const int64_t r = p.state_rows[i], token = p.token_ids[i];
  if (r < 0 || token < 0 || token >= p.vocab_size) return;
  uint16_t* const history = p.history + r * p.history_stride + token;
  const uint32_t before = *history;
  if ((before & kMaxCount) < kMaxCount) *history = static_cast<uint16_t>(before + 1);
}

constexpr int kResetThreads = 512;
constexpr int kSlice = 8192;                 // tokens of the vocabulary whose counts fit into 32 KiB
constexpr uint32_t kInPrompt = 0x80000000u;  // the rest of a word counts; there are fewer than 2^31 tokens

__global__ void __launch_bounds__(kResetThreads) reset_history_kernel(ResetHistoryParams p) {
  __shared__ uint32_t counts[kSlice];
  const int64_t begin = int64_t{blockIdx.x} * kSlice;
  const int size = static_cast<int>(min(static_cast<long long>(p.vocab_size - begin), static_cast<long long>(kSlice)));
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kResetThreads) counts[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.num_tokens; i += kResetThreads) {
    const int64_t within = p.token_ids[i] - begin;
    if (within < 0 || within >= size) continue;
    if (i < p.num_prompt) {
      atomicOr(&counts[within], kInPrompt);
    } else {
      atomicAdd(&counts[within], 1u);
    }
  }
  __syncthreads();
  uint16_t* const history = p.history + p.row * p.history_stride + begin;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kResetThreads) {
    const uint32_t count = min(counts[i] & ~kInPrompt, kMaxCount);
    history[i] = static_cast<uint16_t>(counts[i] & kInPrompt ? count | kPromptBit : count);
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxVocabSize = int64_t{1} << 27;  // 65535 tiles of 2048 fit into a grid

void check_vocab_size(const char* op, int64_t vocab_size) {
  PE_CHECK(op, vocab_size >= 1 && vocab_size < kMaxVocabSize,
           "vocab_size must be in [1, 2^27), got " + std::to_string(vocab_size));
}

template <typename Params>
void check_logits(const char* op, const Params& p) {
  check_vocab_size(op, p.vocab_size);
  PE_CHECK(op, p.num_rows >= 0 && p.num_rows <= INT32_MAX,
           "num_rows must be in [0, 2^31), got " + std::to_string(p.num_rows));
  PE_CHECK(op, p.num_rows <= 1 || p.logits_stride >= p.vocab_size,
           "logits_stride must be at least vocab_size " + std::to_string(p.vocab_size) + ", got " +
               std::to_string(p.logits_stride));
}

dim3 tiles(int64_t num_rows, int64_t vocab_size, int64_t tile) {
  return dim3(static_cast<unsigned>(num_rows), static_cast<unsigned>(div_ceil(vocab_size, tile)));
}
dim3 blocks(int64_t items, int64_t per_block) { return dim3(static_cast<unsigned>(div_ceil(items, per_block))); }

}  // namespace

void apply_penalties(const PenaltyParams& p, Stream stream) {
  constexpr const char* kOp = "apply_penalties";
  check_logits(kOp, p);
  launch_overlapping(penalties_kernel, tiles(p.num_rows, p.vocab_size, kPenaltyTile), dim3(kThreads), 0, stream, kOp,
                     p);
}

void apply_bias(const BiasParams& p, Stream stream) {
  constexpr const char* kOp = "apply_bias";
  check_logits(kOp, p);
  launch_overlapping(bias_kernel, blocks(p.num_entries, kThreads), dim3(kThreads), 0, stream, kOp, p);
}

void apply_mask(const MaskParams& p, Stream stream) {
  constexpr const char* kOp = "apply_mask";
  check_logits(kOp, p);
  launch_overlapping(mask_kernel, tiles(p.num_rows, p.vocab_size, kMaskTile), dim3(kThreads), 0, stream, kOp, p);
}

void count_tokens(const CountTokensParams& p, Stream stream) {
  constexpr const char* kOp = "count_tokens";
  check_vocab_size(kOp, p.vocab_size);
  launch_overlapping(count_tokens_kernel, blocks(p.num_rows, kThreads), dim3(kThreads), 0, stream, kOp, p);
}

void reset_history(const ResetHistoryParams& p, Stream stream) {
  constexpr const char* kOp = "reset_history";
  check_vocab_size(kOp, p.vocab_size);
  PE_CHECK(kOp, p.row >= 0, "row must not be negative, got " + std::to_string(p.row));
  PE_CHECK(kOp, p.num_tokens >= 0 && p.num_tokens <= INT32_MAX,
           "num_tokens must be in [0, 2^31), got " + std::to_string(p.num_tokens));
  launch(reset_history_kernel, blocks(p.vocab_size, kSlice), dim3(kResetThreads), 0, stream, kOp, p);
}

}  // namespace pe::cuda
