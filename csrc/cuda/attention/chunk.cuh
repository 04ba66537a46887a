// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share when a step is short: up to 16 packed rows, a run of whole chunks, one at a time.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0, D <= 128; H % HK == 0
// a CTA of 8 warps on one chunk · tile: 16 rows x 256 keys · smem: K of two chunks, V of one: 204 KiB at D = 128
// traffic: as decode.cuh; what counts here is latency: a chunk's 128 KiB are asked for at once, four warps make the
// scores of one tile each, eight warps multiply V, 16 columns each
// floor: one chunk, D=128, bf16: 128 KiB at 1 / 132 of 3.35 TB/s = 5.2 us; alone on the GPU about 2 us
//
// The same bits as a warp alone makes: a score does not know its neighbours; maxima are exact in any order, so all
// tiles' maxima, decays and weights can be had at once; and each column of the accumulator goes through the very chain
// of rescalings and products that decode.cuh takes it through.
#pragma once
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// Shared memory of a CTA on whole chunks.
struct TileStats {
  float max[kWarpRows], decay[kWarpRows], sums[kWarpRows][4];  // of each row; sums by the lanes that hold them
};
static_assert(kChunkTiles * sizeof(TileStats) == kTileStatBytes, "room in shared memory");

template <int kDim>
struct ChunkMemory {
  unsigned char* base;

  __device__ __forceinline__ unsigned char* keys(int chunk) const { return base + chunk % 2 * kChunkBytes<kDim>; }
  __device__ __forceinline__ unsigned char* values() const { return base + 2 * kChunkBytes<kDim>; }
  __device__ __forceinline__ uint4* weights() const { return reinterpret_cast<uint4*>(base + 3 * kChunkBytes<kDim>); }
  __device__ __forceinline__ TileStats* stats() const {
    return reinterpret_cast<TileStats*>(base + 3 * kChunkBytes<kDim> + kWeightBytes);
  }
};

// K or V of a chunk: each warp asks for two of its 16 slabs.
template <typename T, int kDim>
__device__ __forceinline__ void request_chunk(const KvStream<T, kDim>& stream, const Job& job, unsigned char* to,
                                              int chunk, bool values) {
#pragma unroll
  for (int slab = warp_id(); slab < kChunkSlabs; slab += kWarps) {
    const int token = chunk * kChunkTokens + slab * kSlabTokens;
    if (holds_keys(job, token, kSlabTokens)) {
      stream.template copy_rows<kSlabTokens>(to + slab * kSlabBytes<kDim>, token, values);
    }
  }
  cp_async_commit();  // also when empty: groups are counted
}

// The scores of this warp's tile, and their maxima for the others.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void score_tile(const RunArgs& args, const Job& job, int tile, const unsigned char* keys,
                                           const uint32_t (&q)[kDim / 16][4], TileScores& scores, TileStats& stats) {
  const int token = tile * kTileTokens;
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    if (!holds_keys(job, token + s * kSlabTokens, kSlabTokens)) continue;
    multiply_keys<T, kDim, 1>(keys + s * kSlabBytes<kDim>, q, scores + 2 * s);
  }
  if (!sees_whole_tile(job, token)) hide_unseen<kHalves>(args, job, token, scores);
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const float most = largest_score(scores, i);
    if (lane_id() % 4 == 0) stats.max[lane_row(i)] = most;
  }
}

// The weights of this warp's tile, from its scores and the maxima of the tiles before it in the chunk.
template <typename T, int kHalves>
__device__ __forceinline__ void weigh_tile(float scale_log2, int first, int mine, TileScores& scores, TileStats* stats,
                                           uint4* weights) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    float before = kNoScore;
    for (int t = first; t < mine; ++t) before = fmaxf(before, stats[t].max[lane_row(i)]);
    const float after = fmaxf(before, stats[mine].max[lane_row(i)]);
    const Rescale rescale = make_rescale(before, after, scale_log2);
    stats[mine].sums[lane_row(i)][lane_id() % 4] = weigh_scores(scores, i, scale_log2, rescale.shift);
    if (lane_id() % 4 == 0) stats[mine].decay[lane_row(i)] = rescale.decay;
  }
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    uint32_t w[4];
    pack_weights<T, kHalves>(scores, s, w);
    weights[(mine * kTileSlabs + s) * kWarpSize + lane_id()] = make_uint4(w[0], w[1], w[2], w[3]);
  }
}

// Tiles [first, end) of the chunk into 16 columns of its state.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void absorb_columns(const Job& job, int chunk, int first, int end,
                                               const ChunkMemory<kDim>& memory, int column,
                                               RowState<16, kHalves>& state) {
  for (int t = first; t < end; ++t) {
    const TileStats& stats = memory.stats()[t];
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      const float decay = stats.decay[lane_row(i)];
      state.max[i] = fmaxf(state.max[i], stats.max[lane_row(i)]);
      state.sum[i] = fmaf(state.sum[i], decay, stats.sums[lane_row(i)][lane_id() % 4]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        state.acc[j][2 * i] *= decay;
        state.acc[j][2 * i + 1] *= decay;
      }
    }
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      const int slab = t * kTileSlabs + s;
      if (!holds_keys(job, chunk * kChunkTokens + slab * kSlabTokens, kSlabTokens)) continue;
      const uint4 w = memory.weights()[slab * kWarpSize + lane_id()];
      const uint32_t weights[4] = {w.x, w.y, w.z, w.w};
      multiply_values<T, kDim, 16>(memory.values() + slab * kSlabBytes<kDim> + column * 2, weights, state.acc);
    }
  }
}

template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_chunk_item(const RunArgs& args, const Job& job, unsigned char* smem) {
  static_assert(kDim / 16 <= kWarps || kWholeChunkBytes<kDim> > 227 << 10, "a warp for each 16 columns");
  const ChunkMemory<kDim> memory{smem};
  const int mine = warp_id(), column = warp_id() * 16;
  const int first_chunk = job.tiles.begin / kChunkTiles, end_chunk_index = div_ceil(job.tiles.end, kChunkTiles);
  KvStream<T, kDim> stream(args, job);
  request_chunk<T, kDim>(stream, job, memory.keys(first_chunk), first_chunk, false);
  request_chunk<T, kDim>(stream, job, memory.values(), first_chunk, true);
  uint32_t q[kDim / 16][4];
  if (mine < kChunkTiles) load_queries<T, kDim, kHalves>(args, job, q);
  RowState<16, kHalves> state, running;
  state.clear();
  running.clear();

  for (int chunk = first_chunk; chunk < end_chunk_index; ++chunk) {
    const bool more = chunk + 1 < end_chunk_index;
    const int first = max(job.tiles.begin - chunk * kChunkTiles, 0);
    const int end = min(job.tiles.end - chunk * kChunkTiles, kChunkTiles);
    const bool scores_tile = mine >= first && mine < end;
    if (more) {
      stream.enter_tile((chunk + 1) * kChunkTiles);
      request_chunk<T, kDim>(stream, job, memory.keys(chunk + 1), chunk + 1, false);
    } else {
      cp_async_commit();
    }
    cp_async_wait<2>();
    __syncthreads();  // K is there
    TileScores scores = {};
    if (scores_tile) {
      score_tile<T, kDim, kHalves>(args, job, chunk * kChunkTiles + mine,
                                   memory.keys(chunk) + mine * kTileBytes<kDim>, q, scores, memory.stats()[mine]);
    }
    __syncthreads();  // all maxima
    if (scores_tile)
      weigh_tile<T, kHalves>(args.scale_log2, first, mine, scores, memory.stats(), memory.weights());
    cp_async_wait<1>();
    __syncthreads();  // V and all weights
    if (column < kDim) {
      absorb_columns<T, kDim, kHalves>(job, chunk, first, end, memory, column, state);
      end_chunk<kDim>(args, job, chunk, state, running, column);
    }
    if (!more) break;
    __syncthreads();  // everybody is done with V
    request_chunk<T, kDim>(stream, job, memory.values(), chunk + 1, true);
  }
  if (column < kDim) end_item<T, kDim>(args, job, running, column);
}

}  // namespace pe::cuda::attention
