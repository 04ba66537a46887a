// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share on sm_90a: what prefill.cuh does, bit for bit, with warpgroup-wide products.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D in {64, 128}; H % HK == 0
// 2 warpgroups x 64 rows, a third one fetches · tile: 128 rows x 64 keys · smem: ring of tiles (prefill_ring.cuh)
// traffic: 4 * 128 * 64 * D flop per 64 * D * 2 * sizeof(kv) bytes from L2 = 128 flop/byte -> bound by tensor cores;
// shared memory carries a tile 3 times (copied once, read by each warpgroup): 768 cycles against 1024 of products
// floor: causal 1 x 4096, H=32, D=128: 137 GFLOP = 139 us at 989 TFLOP/s
//
// Why the bits are the same: a warp holds the same 16 rows in the same lanes, S = q k^T ascends over head_dim and
// acc += weights v over the keys in the same steps of 16, and all between the two products is the same functions of
// softmax.cuh. A warp also computes tiles that none of its rows sees; that changes nothing, as softmax.cuh promises.
//
// Two things keep the tensor cores busy while exponentials are computed. Inside a warpgroup, S of the next tile and
// acc += weights v of this one are issued together, and the softmax of the next runs under the latter. And the two
// warpgroups are not in step: they meet at no CTA-wide barrier, one may be a whole step ahead of the other.
#pragma once
#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/prefill_ring.cuh"

namespace pe::cuda::attention {

#if defined(PE_WGMMA)

constexpr int kWarpgroupRows = kWarpgroupWarps * kWarpRows;

// scores = q k^T, ascending over head_dim. Runs on after the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_scores(const uint32_t (&q)[kDim / 16][4], const unsigned char* keys,
                                             TileScores& scores) {
  constexpr int kBlockSlabs = kSwizzleColumns / 16;
  const uint32_t k = matrix_descriptor(keys, 16);  // distance of blocks: not looked at
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int at = i / kBlockSlabs * kSwizzleBlockBytes + i % kBlockSlabs * 32;
    wgmma_k_major<T>(scores, q[i], advance(k, at), i > 0);
  }
  wgmma_commit();
}

// acc += weights v, ascending over the keys; what acc held before a chunk's first tile is not looked at. Runs on after
// the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_values(const TileWeights& weights, const unsigned char* values, bool begins_chunk,
                                             float (&acc)[kDim / 8][4]) {
  const uint32_t v = matrix_descriptor(values, kSwizzleBlockBytes);
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    wgmma_mn_major<T>(acc, weights[s], advance(v, s * kSlabTokens * kSwizzleRowBytes), s > 0 || !begins_chunk);
  }
  wgmma_commit();
}

__device__ __forceinline__ bool begins_chunk(const Job& job, int tile) {
  return tile % kChunkTiles == 0 || tile == job.tiles.begin;
}

// What the chunks before the present one have come to, for two rows of a lane: acc lies in shared memory, where each
// thread reads and writes only its own, once for each chunk.
template <int kDim>
class ParkedState {
 public:
  __device__ __forceinline__ explicit ParkedState(float4* all) : acc_(all + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) max_[i] = kNoScore, sum_[i] = 0;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) acc_[j * kThreads] = make_float4(0, 0, 0, 0);
  }

  // merge_chunk of softmax.cuh.
  __device__ __forceinline__ void merge_chunk(const RowState<kDim, 2>& chunk, float scale_log2) {
    MergeFactors f[2];
    bool seen[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      f[i] = merge_factors(max_[i], chunk.max[i], scale_log2);
      seen[i] = chunk.sum[i] != 0;
      if (!seen[i]) continue;
      max_[i] = f[i].max;
      sum_[i] = merge(sum_[i], chunk.sum[i], f[i]);
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      float4 x = acc_[j * kThreads];
      const float (&c)[4] = chunk.acc[j];
      if (seen[0]) x.x = merge(x.x, c[0], f[0]), x.y = merge(x.y, c[1], f[0]);
      if (seen[1]) x.z = merge(x.z, c[2], f[1]), x.w = merge(x.w, c[3], f[1]);
      acc_[j * kThreads] = x;
    }
  }

  __device__ __forceinline__ void take(RowState<kDim, 2>& state) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) state.max[i] = max_[i], state.sum[i] = sum_[i];
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const float4 x = acc_[j * kThreads];
      state.acc[j][0] = x.x, state.acc[j][1] = x.y, state.acc[j][2] = x.z, state.acc[j][3] = x.w;
    }
  }

 private:
  float4* const acc_;
  float max_[2], sum_[2];
};

// The same in registers, where there are enough and shared memory has no room.
template <int kDim>
class HeldState {
 public:
  __device__ __forceinline__ HeldState() { state_.clear(); }
  __device__ __forceinline__ void merge_chunk(const RowState<kDim, 2>& chunk, float scale_log2) {
    attention::merge_chunk(chunk, scale_log2, state_);
  }
  __device__ __forceinline__ void take(RowState<kDim, 2>& state) const { state = state_; }

 private:
  RowState<kDim, 2> state_;
};

// keep_chunk of job.cuh.
template <int kDim, typename Running>
__device__ __forceinline__ void keep_chunk(const RunArgs& args, const Job& job, int chunk_index,
                                           RowState<kDim, 2>& chunk, Running& running) {
  close_chunk(chunk);
  if (job.item.folds != 0) {
    running.merge_chunk(chunk, args.scale_log2);
  } else {
    store_partial<kDim>(args, job, chunk_index - job.item.chunk_begin, chunk);
  }
}

__device__ __forceinline__ void hide_unseen(const RunArgs& args, const Job& job, const KeyRange& plain, int tile,
                                            TileScores& scores) {
  const int token = tile * kTileTokens;
  if (token < plain.begin || token + kTileTokens > plain.end) hide_unseen<2>(args, job, token, scores);
}

// Step 0: S of tile 0 and its softmax. Step i: S of tile i and acc += weights v of tile i - 1, then the softmax of tile
// i. Step n: what is left, acc += weights v of the last tile.
template <typename Format, int kDim, typename Ring, typename Running>
__device__ __forceinline__ void run_steps(const RunArgs& args, const Job& job, const uint32_t (&q)[kDim / 16][4],
                                          Ring& ring, Running& running) {
  using T = typename Format::Element;
  RowState<kDim, 2> chunk;
  chunk.clear();
  TileScores scores;
  TileWeights weights;
  float decay[2];
  // Keys that all rows of the warp see. In registers: the scores wait for no load from shared memory.
  const KeyRange plain = {job.last.begin, job.first.end};

  ring.enter(0);
  wgmma_fence();
  start_scores<T, kDim>(q, ring.keys(), scores);
  ring.work_ahead(0);
  wgmma_wait<0>();
  hold(scores);
  ring.leave_keys(0);
  Format::scale_scores(args, job, scores);
  int tile = job.tiles.begin;
  hide_unseen(args, job, plain, tile, scores);
  weigh_scores<2>(scores, args.scale_log2, chunk.max, chunk.sum, decay);  // no acc yet to rescale
  pack_weights<T, 2>(scores, weights);

  const int num_tiles = ring.num_tiles();
  for (int step = 1; step < num_tiles; ++step) {
    ring.enter(step);
    wgmma_fence();
    start_scores<T, kDim>(q, ring.keys(), scores);
    start_values<T, kDim>(weights, ring.values(), begins_chunk(job, tile), chunk.acc);
    ring.work_ahead(step);

    ++tile;
    const bool begins = tile % kChunkTiles == 0;
    float max[2], sum[2];  // `chunk` stays as it is until all of its acc has come in
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      max[i] = begins ? kNoScore : chunk.max[i];
      sum[i] = begins ? 0 : chunk.sum[i];
    }
    wgmma_wait<1>();
    hold(scores);
    ring.leave_keys(step);
    Format::scale_scores(args, job, scores);
    hide_unseen(args, job, plain, tile, scores);
    weigh_scores<2>(scores, args.scale_log2, max, sum, decay);
    compute_before_wait(fminf(sum[0], sum[1]));  // all of this runs under the product with v

    wgmma_wait<0>();
    hold(chunk.acc);
    hold(weights);
    ring.leave_values(step);
    if (begins) {
      Format::scale_values(args, job, chunk.acc);
      keep_chunk<kDim>(args, job, tile / kChunkTiles - 1, chunk, running);  // what is in acc then, nobody looks at
    } else {
      rescale<kDim, 2>(decay, chunk.acc);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      chunk.max[i] = max[i];
      chunk.sum[i] = sum[i];
    }
    pack_weights<T, 2>(scores, weights);
  }

  ring.enter(num_tiles);
  wgmma_fence();
  start_values<T, kDim>(weights, ring.values(), begins_chunk(job, tile), chunk.acc);
  wgmma_wait<0>();
  hold(chunk.acc);
  hold(weights);
  ring.leave_values(num_tiles);
  Format::scale_values(args, job, chunk.acc);
  keep_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  if (job.item.folds == 0) return;
  running.take(chunk);
  end_item<T, kDim>(args, job, chunk);
}

// A CTA's items, as the third warpgroup announces them, for this warp.
template <typename T, int kDim>
__device__ __forceinline__ void run_fetched_items(const RunArgs& args, const PrefillMemory<kDim>& memory, Job* job) {
  FetchedTiles<kDim> tiles(memory);
  while (tiles.next_item(args, job)) {
    if (job->tile_rows > warp_id() / kWarpgroupWarps * kWarpgroupRows) {
      uint32_t q[kDim / 16][4];
      load_queries<T, kDim, 2>(args, *job, q);
      ParkedState<kDim> running(memory.running);
      run_steps<KvFormat<T, kDim>, kDim>(args, *job, q, tiles, running);
    } else {
      tiles.skip_item();
    }
    if (job->item.split < 0) continue;
    sync_workers();
    if (threadIdx.x == 0) arrive(args, *job);
  }
}

#endif

}  // namespace pe::cuda::attention
