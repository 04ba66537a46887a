// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share: up to 128 packed rows (query tokens x query heads of a kv head), a run of chunks.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0; H % HK == 0
// a CTA of 8 warps x 16 rows · tile: 128 rows x 64 keys · smem: ring of 4 tiles (K V K V), 68 KiB at D = 128
// traffic: 4 * 128 * 64 * D flop per 64 * D * 2 * sizeof(kv) bytes from L2 = 128 flop/byte -> bound by mma.sync
// floor: causal 1 x 4096, H=32, D=128: 137 GFLOP = 174 us at 790 TFLOP/s; mma.sync reaches about 0.6 of that
#pragma once
#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// The CTA's ring of tiles: K and V of an even tile, K and V of an odd one. Each warp copies 8 of a tile's 64 rows.
template <typename T, int kDim>
class TileRing {
 public:
  __device__ __forceinline__ TileRing(const RunArgs& args, const Job& job, unsigned char* slots)
      : stream_(args, job), job_(job), slots_(slots) {
    static_assert(kCtaStages == 4, "two tiles");
    request(job.tiles.begin, false);
    request(job.tiles.begin, true);
    request(job.tiles.begin + 1, false);
  }

  // Wait for K or V of a tile, in this order, and ask for what takes the place of the one before.
  __device__ __forceinline__ const unsigned char* keys(int tile) {
    wait();
    request(tile + 1, true);
    return slot(tile, false);
  }
  __device__ __forceinline__ const unsigned char* values(int tile) {
    wait();
    request(tile + 2, false);
    return slot(tile, true);
  }

 private:
  __device__ __forceinline__ void wait() {
    cp_async_wait<kCtaStages - 2>();
    sync_workers();  // all warps' copies have arrived, and all warps are past the tile before
  }
  __device__ __forceinline__ unsigned char* slot(int tile, bool values) const {
    return slots_ + (tile % 2 * 2 + values) * kTileBytes<kDim>;
  }
  __device__ __forceinline__ void request(int tile, bool values) {
    if (tile < job_.tiles.end) {
      constexpr int kRows = kTileTokens / kWarps;
      static_assert(kSlabTokens % kRows == 0, "a warp's rows lie in one slab");
      const int row = warp_id() * kRows;
      if (!values) stream_.enter_tile(tile);
      stream_.template copy_rows<kRows>(slot(tile, values) + row * kRowBytes<kDim>, tile * kTileTokens + row, values);
    }
    cp_async_commit();  // also when empty: groups are counted
  }

  KvStream<T, kDim> stream_;
  const Job& job_;
  unsigned char* slots_;
};

template <typename T, int kDim>
__device__ __forceinline__ void run_cta_item(const RunArgs& args, const Job& job, unsigned char* slots) {
  using Format = KvFormat<T, kDim>;
  using Element = typename Format::Element;
  TileRing<T, kDim> ring(args, job, slots);
  uint32_t q[kDim / 16][4];
  load_queries<Element, kDim, 2, Format::kQuads>(args, job, q);
  RowState<kDim, 2> chunk, running;
  chunk.clear();
  running.clear();

  for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    const bool works = sees_tile(job, token);
    TileWeights weights;
    const unsigned char* keys = ring.keys(tile);
    if (works) {
      TileScores scores = {};
      multiply_keys<Element, kDim, kTileSlabs>(keys, q, scores);
      Format::scale_scores(args, job, scores);
      if (!sees_all(job, token, kTileTokens)) hide_unseen<2>(args, job, token, scores);
      absorb_scores<Element>(scores, args.scale_log2, chunk, weights);
    }
    const unsigned char* values = ring.values(tile);
    if (works) {
#pragma unroll
      for (int s = 0; s < kTileSlabs; ++s) {
        multiply_values<Element, kDim>(values + s * kSlabBytes<kDim>, weights[s], chunk.acc);
      }
    }
    if (!ends_chunk(job, tile)) continue;
    Format::scale_values(args, job, chunk.acc);
    end_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  }
  end_item<Element, kDim>(args, job, running);
}

}  // namespace pe::cuda::attention
