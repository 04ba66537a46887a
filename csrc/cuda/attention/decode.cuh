// SPDX-License-Identifier: Apache-2.0
// paged attention, one warp's share: up to 16 packed rows (query heads of a kv head x query tokens) against a run of
// chunks. q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0; H % HK == 0; rows
// past the sequence: zeros a warp alone, no CTA barrier · tile: 16 rows x 64 keys · smem: the warp's own ring of slabs
// of 16 keys (26 KiB deep, 8 warps per SM) traffic: chunks * 256 * D * 2 * sizeof(kv) read once; 2 * G flop/byte (G =
// H/HK rows of the 16) -> HBM-bound for G <= 64 floor: S=64, len=2048, HK=8, D=128, bf16: 537 MB = 160 us at 3.35 TB/s
#pragma once
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// The warp's ring. Slabs are asked for in the order in which they are used: a tile's four of K, then its four of V.
template <typename T, int kDim>
class SlabRing {
 public:
  __device__ __forceinline__ SlabRing(KvStream<T, kDim>& stream, unsigned char* slots, int num_slots, TileRange tiles)
      : stream_(stream), slots_(slots), num_slots_(num_slots), tile_(tiles.begin), end_tile_(tiles.end) {
    __syncwarp();  // the previous item's reads are done
    for (int i = 0; i < num_slots_ - 1; ++i) request();
  }

  // Waits for the next slab in line and asks for the one that takes the place of the last.
  __device__ __forceinline__ const unsigned char* next() {
    if (num_slots_ == kShallowSlots) {
      cp_async_wait<kShallowSlots - 2>();
    } else {
      cp_async_wait<kDeepSlots<kDim> - 2>();
    }
    __syncwarp();  // all lanes' copies have arrived, and all lanes are past the slab before
    request();
    const unsigned char* slab = slots_ + read_ * kSlabBytes<kDim>;
    read_ = read_ + 1 == num_slots_ ? 0 : read_ + 1;
    return slab;
  }

 private:
  __device__ __forceinline__ void request() {
    if (tile_ < end_tile_) {
      const int token = tile_ * kTileTokens + part_ % kTileSlabs * kSlabTokens;
      stream_.enter_chunk(tile_ / kChunkTiles);
      if (stream_.holds(token, kSlabTokens)) {
        stream_.template copy_rows<kSlabTokens>(slots_ + write_ * kSlabBytes<kDim>, token, part_ >= kTileSlabs);
      }
      part_ = part_ + 1 == 2 * kTileSlabs ? 0 : part_ + 1;
      tile_ += part_ == 0;
      write_ = write_ + 1 == num_slots_ ? 0 : write_ + 1;
    }
    cp_async_commit();  // also when empty: groups are counted
  }

  KvStream<T, kDim>& stream_;
  unsigned char* slots_;
  int num_slots_, tile_, end_tile_;
  int part_ = 0, write_ = 0, read_ = 0;
};

template <typename T, int kDim>
__device__ __forceinline__ void run_warp_item(const RunArgs& args, const Item& item, int kv_head,
                                              unsigned char* slots) {
  const Sequence seq(args, item.seq);
  const WarpRows rows(seq, item.first_row, seq.num_rows(args.group), args);
  const KeyRange range{rows.first.begin, rows.last.end};
  const TileRange tiles = tiles_of(item, range);
  KvStream<T, kDim> stream(args, item.seq, kv_head, range, tiles.begin / kChunkTiles);
  SlabRing<T, kDim> ring(stream, slots, args.num_slots, tiles);
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim>(args, seq, rows, kv_head, q);
  ChunkSink<T, kDim> sink(args, item, kv_head, rows.num_rows, 0);
  RowState<kDim> chunk;
  chunk.clear();

  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    TileScores scores = {};
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      const unsigned char* keys = ring.next();
      if (stream.holds(token + s * kSlabTokens, kSlabTokens)) multiply_keys<T, kDim, 1>(keys, q, scores + 2 * s);
    }
    if (!rows.all_see_all(token, kTileTokens)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) hide_keys(token, rows.mine[i].begin, rows.mine[i].end, i, scores);
    }
    TileWeights weights;
    absorb_scores<T>(scores, args.scale_log2, chunk, weights);
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      const unsigned char* values = ring.next();
      if (stream.holds(token + s * kSlabTokens, kSlabTokens)) multiply_values<T, kDim>(values, weights[s], chunk.acc);
    }
    if ((tile + 1) % kChunkTiles == 0 || tile + 1 == tiles.end) sink.take(rows, chunk);
  }
  sink.finish(seq, rows);
}

}  // namespace pe::cuda::attention
