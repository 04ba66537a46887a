// SPDX-License-Identifier: Apache-2.0
// One row of logits and its parameters, and how a row is cut up.
//
// A segment is what one block of the scan reads; a group is the 64 elements of it that one thread reads, 16 vectors of
// four, a block apart, so that neighbouring threads read neighbouring vectors. The maximum of each group is the scan's
// by-product that spares filtered rows a second pass.
#pragma once
#include "cuda/common/vec.cuh"
#include "cuda/sampling/draw.cuh"
#include "pe/sampling.h"

namespace pe::cuda {

constexpr int kScanThreads = 256;
constexpr int kVectorsPerGroup = 16;
constexpr int kVectorStep = kScanThreads * 4;                  // elements from one vector of a group to the next
constexpr int kSegment = kScanThreads * kVectorsPerGroup * 4;  // elements

enum class Mode { kPadding, kGreedy, kPlain, kFiltered };

struct Row {
  Mode mode;
  const float* logits;
  int32_t vocab_size;
  bool vectors;  // 16-byte loads are possible
  float temperature;
  float top_p, min_p;  // as given; off when >= 1 / 0
  int32_t top_k;       // 0 = off
  uint32_t key;        // of the draw

  // logit / temperature; a temperature so small that it overflows must not turn a number into an infinity.
  __device__ __forceinline__ float scaled(float logit) const {
    return fminf(fmaxf(__fdiv_rn(logit, temperature), -FLT_MAX), FLT_MAX);
  }

  // Four logits from element `index` (a multiple of 4) on; past the end -inf, which is what a mask is.
  __device__ __forceinline__ float4 load(int index) const {
    if (vectors && index + 4 <= vocab_size) {
      return *reinterpret_cast<const float4*>(logits + index);
    }
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = index + j < vocab_size ? logits[index + j] : -INFINITY;
    return make_float4(x[0], x[1], x[2], x[3]);
  }
};

__device__ __forceinline__ Row load_row(const SampleParams& p, int row_index) {
  Row row{};
  const int32_t r = p.param_rows ? p.param_rows[row_index] : row_index;
  if (r < 0) return row;  // Mode::kPadding
  row.logits = p.logits + row_index * p.logits_stride;
  row.vocab_size = static_cast<int32_t>(p.vocab_size);
  row.vectors = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;
  row.temperature = p.temperature[r];
  row.mode = Mode::kGreedy;
  if (!(row.temperature > 0)) return row;  // 0; what else is refused at the edge must not become an index here
  row.top_p = p.top_p[r];
  row.min_p = p.min_p[r];
  row.top_k = p.top_k[r] < row.vocab_size ? max(p.top_k[r], 0) : 0;
  row.key = draw_key(static_cast<uint64_t>(p.seeds[r]), p.positions[row_index]);
  row.mode = row.top_k > 0 || row.top_p < 1 || row.min_p > 0 ? Mode::kFiltered : Mode::kPlain;
  return row;
}

}  // namespace pe::cuda
