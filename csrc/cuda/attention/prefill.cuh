// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share: up to 128 packed rows (query tokens x query heads of a kv head) against a run of
// chunks. q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0; H % HK == 0; rows
// past the sequence: zeros a CTA of 8 warps x 16 rows · tile: 128 rows x 64 keys · smem: ring of 4 tiles (K V K V), 68
// KiB at D = 128 · 1 CTA/SM traffic: 64 * D * 2 * sizeof(kv) per 128 x 64 x D x 4 flop = 128 flop/byte from L2 -> bound
// by mma.sync and ldmatrix floor: causal 1 x 4096, H=32, D=128: 137 GFLOP = 174 us at 790 TFLOP/s (about 0.63 of it
// with mma.sync)
#pragma once
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// The CTA's ring of tiles, K and V in turn; each warp copies 8 of a tile's 64 rows.
template <typename T, int kDim>
class TileRing {
 public:
  __device__ __forceinline__ TileRing(KvStream<T, kDim>& stream, unsigned char* slots, TileRange tiles)
      : stream_(stream), slots_(slots), tile_(tiles.begin), end_tile_(tiles.end) {
#pragma unroll
    for (int i = 0; i < kCtaStages - 1; ++i) request();
  }

  // Waits for the next tile in line and asks for the one that takes the place of the last.
  __device__ __forceinline__ const unsigned char* next() {
    cp_async_wait<kCtaStages - 2>();
    __syncthreads();  // all warps' copies have arrived, and all warps are past the tile before
    request();
    const unsigned char* tile = slots_ + read_ * kTileBytes<kDim>;
    read_ = (read_ + 1) % kCtaStages;
    return tile;
  }

 private:
  __device__ __forceinline__ void request() {
    if (tile_ < end_tile_) {
      constexpr int kRows = kTileTokens / kWarps;
      static_assert(kSlabTokens % kRows == 0, "a warp's rows lie in one slab");
      const int row = warp_id() * kRows;
      stream_.enter_chunk(tile_ / kChunkTiles);
      stream_.template copy_rows<kRows>(slots_ + write_ * kTileBytes<kDim> + row * kRowBytes<kDim>,
                                        tile_ * kTileTokens + row, write_ % 2 != 0);
      tile_ += write_ % 2;
      write_ = (write_ + 1) % kCtaStages;
    }
    cp_async_commit();  // also when empty: groups are counted
  }

  KvStream<T, kDim>& stream_;
  unsigned char* slots_;
  int tile_, end_tile_;
  int write_ = 0, read_ = 0;
};

template <typename T, int kDim>
__device__ __forceinline__ void run_cta_item(const RunArgs& args, const Item& item, int kv_head, unsigned char* slots) {
  const Sequence seq(args, item.seq);
  const int end_row = min(item.first_row + kCtaRows, seq.num_rows(args.group));
  const WarpRows rows(seq, item.first_row + warp_id() * kWarpRows, end_row, args);
  const KeyRange range{seq.keys_of(item.first_row, args).begin, seq.keys_of(end_row - 1, args).end};
  const TileRange tiles = tiles_of(item, range);
  KvStream<T, kDim> stream(args, item.seq, kv_head, range, tiles.begin / kChunkTiles);
  TileRing<T, kDim> ring(stream, slots, tiles);
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim>(args, seq, rows, kv_head, q);
  ChunkSink<T, kDim> sink(args, item, kv_head, end_row - item.first_row, warp_id() * kWarpRows);
  RowState<kDim> chunk;
  chunk.clear();

  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    const bool works = rows.sees_any(token, kTileTokens);
    TileWeights weights;
    const unsigned char* keys = ring.next();
    if (works) {
      TileScores scores = {};
      multiply_keys<T, kDim, kTileSlabs>(keys, q, scores);
      if (!rows.all_see_all(token, kTileTokens)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) hide_keys(token, rows.mine[i].begin, rows.mine[i].end, i, scores);
      }
      absorb_scores<T>(scores, args.scale_log2, chunk, weights);
    }
    const unsigned char* values = ring.next();
    if (works) {
#pragma unroll
      for (int s = 0; s < kTileSlabs; ++s) {
        multiply_values<T, kDim>(values + s * kSlabBytes<kDim>, weights[s], chunk.acc);
      }
    }
    if ((tile + 1) % kChunkTiles == 0 || tile + 1 == tiles.end) sink.take(rows, chunk);
  }
  sink.finish(seq, rows);
}

}  // namespace pe::cuda::attention
