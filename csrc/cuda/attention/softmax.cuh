// SPDX-License-Identifier: Apache-2.0
// The arithmetic of attention, all of it: 16 rows against slabs of 16 keys and tiles of 64, and the merge of chunks.
// Online softmax after Milakov & Gimelshein (arXiv 1805.02867), its tiling after FlashAttention-2 (arXiv 2307.08691).
//
// Every path (a warp alone, a CTA, the merge of partial results) calls these functions and no others, which is what
// makes the bits of a row independent of the path. What they promise to that end:
//   * products and sums are written out as fmaf, so no compiler contracts one copy and not another;
//   * a tile in which a row sees nothing leaves its state as it was: its scores are -inf, its maximum does not move,
//     so the old state is multiplied by exactly 1 and zeros are added. Skipping the tile or not is the same;
//   * a row that has seen nothing has max = -inf, sum = 0, acc = 0, and no inf - inf arises from it.
// Scores stay unscaled; scale_log2 = scale x log2(e) > 0 is applied inside the power of two.
#pragma once
#include <cmath>

#include "cuda/attention/tile_config.h"
#include "cuda/common/mma.cuh"
#include "cuda/common/warp.cuh"

namespace pe::cuda::attention {

constexpr float kNoScore = -INFINITY;

#if defined(PE_SIMT)
inline float power_of_2(float x) { return exp2f(x); }
#else
// exp2f without its treatment of subnormal results, which are nothing beside the row's largest term, 1.
// Exact where it must be: 2^0 = 1, 2^-inf = 0.
__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// Running softmax of a warp's first 8 kHalves rows; index i is this lane's row lane / 4 + 8 i.
template <int kDim, int kHalves>
struct RowState {
  float max[kHalves], sum[kHalves];
  float acc[kDim / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      max[i] = kNoScore;
      sum[i] = 0;
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[j][e] = 0;
    }
  }
};

using TileScores = float[kTileTokens / 8][4];       // accumulators: 16 rows x 64 keys
using TileWeights = uint32_t[kTileTokens / 16][4];  // the same as fragments of the second product

// scores of kSlabs slabs += q k^T. Per score, the products ascend over head_dim in steps of 16, whatever kSlabs.
template <typename T, int kDim, int kSlabs>
__device__ __forceinline__ void multiply_keys(const unsigned char* keys, const uint32_t (&q)[kDim / 16][4],
                                              float (*scores)[4]) {
  const int lane = lane_id();
  const unsigned char* row = keys + (lane / 16 * 8 + lane % 8) * kRowBytes<kDim> + lane / 8 % 2 * 16;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      uint32_t b[4];
      ldmatrix_x4(b, row + slab * kSlabBytes<kDim> + k * 32);
      mma_m16n8k16<T>(scores[2 * slab], q[k], b[0], b[1]);
      mma_m16n8k16<T>(scores[2 * slab + 1], q[k], b[2], b[3]);
    }
  }
}

// acc += weights of one slab x kCols columns of v, from `values` on. The weights of a half that is not computed are
// zero.
template <typename T, int kDim, int kCols = kDim>
__device__ __forceinline__ void multiply_values(const unsigned char* values, const uint32_t (&weights)[4],
                                                float (&acc)[kCols / 8][4]) {
  const int lane = lane_id();
  const unsigned char* row = values + (lane / 8 % 2 * 8 + lane % 8) * kRowBytes<kDim> + lane / 16 * 16;
#pragma unroll
  for (int n = 0; n < kCols / 16; ++n) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, row + n * 32);
    mma_m16n8k16<T>(acc[2 * n], weights, b[0], b[1]);
    mma_m16n8k16<T>(acc[2 * n + 1], weights, b[2], b[3]);
  }
}

// Keys outside [begin, end) of lane row i get no score. `token` is the first of 8 kCols keys.
template <int kCols>
__device__ __forceinline__ void hide_keys(int token, int begin, int end, int i, float (&scores)[kCols][4]) {
#pragma unroll
  for (int j = 0; j < kCols; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = token + 8 * j + 2 * (lane_id() % 4) + e;
      if (key < begin || key >= end) scores[j][2 * i + e] = kNoScore;
    }
  }
}

// Largest of 8 kCols scores of lane row i.
template <int kCols>
__device__ __forceinline__ float largest_score(const float (&scores)[kCols][4], int i) {
  float most = fmaxf(scores[0][2 * i], scores[0][2 * i + 1]);
#pragma unroll
  for (int j = 1; j < kCols; ++j) most = fmaxf(most, fmaxf(scores[j][2 * i], scores[j][2 * i + 1]));
  return warp_reduce<4>(most, [](float a, float b) { return fmaxf(a, b); });
}

// What a tile does to a row whose maximum it raises (or leaves) from `before` to `after`.
struct Rescale {
  float decay, shift;  // of what was there; of the tile's scores
};
__device__ __forceinline__ Rescale make_rescale(float before, float after, float scale_log2) {
  const float base = after == kNoScore ? 0.0f : after;
  return {power_of_2((before - base) * scale_log2), base * scale_log2};
}

// Scores of a slab (two n-tiles) of lane row i become weights; returns the sum of the four that this lane holds.
__device__ __forceinline__ float weigh_slab(float (*scores)[4], int i, float scale_log2, float shift) {
  float sum = 0;  // 0 + p is p: weights are not negative, and the compiler may not know
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& p = scores[j][2 * i + e];
      p = power_of_2(fmaf(p, scale_log2, -shift));
      sum = j + e == 0 ? p : sum + p;
    }
  }
  return sum;
}

// The weights of a slab as fragments of the second product.
template <typename T, int kHalves>
__device__ __forceinline__ void pack_weights(const float (*scores)[4], uint32_t (&weights)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weights[2 * half] = pack2<T>(scores[half][0], scores[half][1]);
    weights[2 * half + 1] = kHalves == 2 ? pack2<T>(scores[half][2], scores[half][3]) : 0;
  }
}

// Takes one tile into max and sum, turns its scores into weights, and leaves what acc is to be multiplied with.
template <int kHalves>
__device__ __forceinline__ void weigh_scores(TileScores& scores, float scale_log2, float (&max)[kHalves],
                                             float (&sum)[kHalves], float (&decay)[kHalves]) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const float most = fmaxf(max[i], largest_score(scores, i));
    const Rescale rescale = make_rescale(max[i], most, scale_log2);
    float tile_sum = weigh_slab(scores, i, scale_log2, rescale.shift);  // slab by slab, in order
#pragma unroll
    for (int s = 1; s < kTileSlabs; ++s) tile_sum += weigh_slab(scores + 2 * s, i, scale_log2, rescale.shift);
    decay[i] = rescale.decay;
    max[i] = most;
    sum[i] = fmaf(sum[i], rescale.decay, tile_sum);
  }
}

template <int kDim, int kHalves>
__device__ __forceinline__ void rescale(const float (&decay)[kHalves], float (&acc)[kDim / 8][4]) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      acc[j][2 * i] *= decay[i];
      acc[j][2 * i + 1] *= decay[i];
    }
  }
}

// The weights as fragments of the product with v; a half that is not computed is zero.
template <typename T, int kHalves>
__device__ __forceinline__ void pack_weights(const TileScores& scores, TileWeights& weights) {
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) pack_weights<T, kHalves>(scores + 2 * s, weights[s]);
}

// Takes one tile into the state's max and sum, rescales acc, and leaves the weights that v is to be multiplied with.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void absorb_scores(TileScores& scores, float scale_log2, RowState<kDim, kHalves>& state,
                                              TileWeights& weights) {
  float decay[kHalves];
  weigh_scores<kHalves>(scores, scale_log2, state.max, state.sum, decay);
  rescale<kDim, kHalves>(decay, state.acc);
  pack_weights<T, kHalves>(scores, weights);
}

// A chunk's sums are kept per lane until its end: here the four lanes of a row add theirs up.
template <int kDim, int kHalves>
__device__ __forceinline__ void close_chunk(RowState<kDim, kHalves>& state) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) state.sum[i] = warp_sum<4>(state.sum[i]);
}

// The contract's merge, as two factors: (max, sum, acc) of both become max, sum * old + sum2 * added, likewise acc.
struct MergeFactors {
  float max, old, added;
};
__device__ __forceinline__ MergeFactors merge_factors(float max, float chunk_max, float scale_log2) {
  const float most = fmaxf(max, chunk_max);
  return {most, power_of_2((max - most) * scale_log2), power_of_2((chunk_max - most) * scale_log2)};
}
__device__ __forceinline__ float merge(float x, float chunk_x, const MergeFactors& f) {
  return fmaf(x, f.old, chunk_x * f.added);
}

// state = state merged with a later, closed chunk; one in which a row saw nothing (sum is 0, not NaN) is left out for
// that row.
template <int kDim, int kHalves>
__device__ __forceinline__ void merge_chunk(const RowState<kDim, kHalves>& chunk, float scale_log2,
                                            RowState<kDim, kHalves>& state) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    if (chunk.sum[i] == 0) continue;
    const MergeFactors f = merge_factors(state.max[i], chunk.max[i], scale_log2);
    state.max[i] = f.max;
    state.sum[i] = merge(state.sum[i], chunk.sum[i], f);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        state.acc[j][2 * i + e] = merge(state.acc[j][2 * i + e], chunk.acc[j][2 * i + e], f);
      }
    }
  }
}

// A row without any key gives zeros; one with a NaN stays NaN.
__device__ __forceinline__ float inverse_sum(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

}  // namespace pe::cuda::attention
