// SPDX-License-Identifier: Apache-2.0
// paged attention, one warp's share: up to 16 packed rows (query heads of a kv head x query tokens), a run of chunks.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0; H % HK == 0
// a warp alone, no CTA barrier · tile: 16 rows x 64 keys · smem: the warp's ring of slabs of 16 keys, 25 KiB deep
// traffic: chunks * 256 * D * 2 * sizeof(kv) read once; G flop/byte (G = H/HK, bf16) -> HBM-bound
// floor: S=64, len=2048, HK=8, D=128, bf16: 537 MB = 160 us at 3.35 TB/s
#pragma once
#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// The warp's ring. Slabs are numbered as they are used: of tile t, K 0..3 are slabs 8 t .. 8 t + 3 and V 0..3 the next
// four.
constexpr int kTileParts = 2 * kTileSlabs;

template <typename T, int kDim>
class SlabRing {
 public:
  __device__ __forceinline__ SlabRing(const RunArgs& args, const Job& job, unsigned char* slots)
      : stream_(args, job), args_(args), job_(job), slots_(slots) {
    for (int i = 0; i < args.num_slots - 1; ++i) request(job.tiles.begin * kTileParts + i, i);
  }

  // Waits for this slab, the next in line, and asks for the one that takes the place of the last.
  __device__ __forceinline__ const unsigned char* get(int slab) {
    if (args_.num_slots == kShallowSlots) {
      cp_async_wait<kShallowSlots - 2>();
    } else {
      cp_async_wait<kDeepSlots<kDim> - 2>();
    }
    __syncwarp();  // all lanes' copies have arrived, and all lanes are past the slab before
    request(slab + args_.num_slots - 1, slot_ == 0 ? args_.num_slots - 1 : slot_ - 1);
    const unsigned char* data = slots_ + slot_ * kSlabBytes<kDim>;
    slot_ = slot_ + 1 == args_.num_slots ? 0 : slot_ + 1;
    return data;
  }

 private:
  __device__ __forceinline__ void request(int slab, int slot) {
    const int tile = slab / kTileParts, part = slab % kTileParts;
    if (tile < job_.tiles.end) {
      const int token = tile * kTileTokens + part % kTileSlabs * kSlabTokens;
      if (part == 0) stream_.enter_tile(tile);
      if (holds_keys(job_, token, kSlabTokens)) {
        stream_.template copy_rows<kSlabTokens>(slots_ + slot * kSlabBytes<kDim>, token, part >= kTileSlabs);
      }
    }
    cp_async_commit();  // also when empty: groups are counted
  }

  KvStream<T, kDim> stream_;
  const RunArgs& args_;
  const Job& job_;
  unsigned char* slots_;
  int slot_ = 0;  // of the next slab in line
};

template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_warp_item(const RunArgs& args, const Job& job, unsigned char* slots) {
  using Format = KvFormat<T, kDim>;
  using Element = typename Format::Element;
  SlabRing<Element, Format::kWords> ring(args, job, slots);
  uint32_t q[kDim / 16][4];
  load_queries<Element, kDim, kHalves, Format::kQuads>(args, job, q);
  RowState<kDim, kHalves> chunk, running;
  chunk.clear();
  begin_running<kDim>(args, job, running);

  for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    TileScores scores = {};
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      const unsigned char* keys = ring.get(tile * kTileParts + s);
      if (holds_keys(job, token + s * kSlabTokens, kSlabTokens)) Format::multiply_keys(keys, q, scores + 2 * s);
    }
    Format::scale_scores(args, job, scores);
    if (!sees_all(job, token, kTileTokens)) hide_unseen<kHalves>(args, job, token, scores);
    TileWeights weights;
    absorb_scores<Element>(scores, args.scale_log2, chunk, weights);
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      const unsigned char* values = ring.get(tile * kTileParts + kTileSlabs + s);
      if (holds_keys(job, token + s * kSlabTokens, kSlabTokens)) Format::multiply_values(values, weights[s], chunk.acc);
    }
    if (!ends_chunk(job, tile)) continue;
    Format::template order_columns<kHalves>(chunk.acc);
    Format::scale_values(args, job, chunk.acc);
    end_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  }
  end_item<Element, kDim>(args, job, running);
}

}  // namespace pe::cuda::attention
