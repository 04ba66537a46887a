// SPDX-License-Identifier: Apache-2.0
// The way from block tables to shared memory: slabs of 16 keys, each inside one physical block.
//
// Only keys inside `range` (what some row of the work item sees) are read, block table entries included; the rest
// becomes zeros. A zero weight would not save a product with a NaN left behind in an unused slot.
#pragma once
#include "cuda/attention/rows.cuh"
#include "cuda/common/async_copy.cuh"

namespace pe::cuda::attention {

// Where one warp gets its keys and values. Lane l holds the physical block of slab l of the chunk being loaded, and
// already that of the next chunk: no copy waits for a block table. Chunks must be entered in ascending order, by all
// lanes.
template <typename T, int kDim>
class KvStream {
 public:
  __device__ __forceinline__ KvStream(const RunArgs& args, int seq, int kv_head, KeyRange range, int first_chunk)
      : args_(args), head_offset_(kv_head * args.head_stride), range_(range), chunk_(first_chunk) {
    const int row = args.table_rows == nullptr ? seq : args.table_rows[seq];
    table_ = args.block_tables + row * args.block_table_stride;
    blocks_ = load_blocks(first_chunk);
    next_blocks_ = load_blocks(first_chunk + 1);
  }

  __device__ __forceinline__ bool holds(int token, int count) const {
    return token < range_.end && token + count > range_.begin;
  }

  __device__ __forceinline__ void enter_chunk(int chunk) {
    if (chunk == chunk_) return;
    chunk_ = chunk;
    blocks_ = next_blocks_;
    next_blocks_ = load_blocks(chunk + 1);
  }

  // Copies kRows rows from key `token` on to shared memory; they lie in one slab of the entered chunk.
  template <int kRows>
  __device__ __forceinline__ void copy_rows(unsigned char* to, int token, bool values) const {
    const int64_t block = __shfl_sync(kFullMask, blocks_, token / kSlabTokens % kChunkSlabs);
    const int64_t in_block = token & ((1 << args_.block_shift) - 1);
    const T* pool = static_cast<const T*>(values ? args_.v : args_.k);
    const T* from = pool + block * args_.block_stride + head_offset_ + in_block * args_.token_stride;
    constexpr int kRowVectors = kDim / 8, kVectors = kRows * kRowVectors;
#pragma unroll
    for (int j = 0; j < div_ceil(kVectors, kWarpSize); ++j) {
      const int index = j * kWarpSize + lane_id();
      if (kVectors % kWarpSize != 0 && index >= kVectors) break;
      const int row = index / kRowVectors, vector = index % kRowVectors;
      const bool valid = token + row >= range_.begin && token + row < range_.end;
      const T* source = valid ? from + row * args_.token_stride + vector * 8 : pool;
      cp_async_16_zfill(to + row * kRowBytes<kDim> + vector * 16, source, valid);
    }
  }

 private:
  __device__ __forceinline__ int load_blocks(int chunk) const {
    const int token = chunk * kChunkTokens + lane_id() * kSlabTokens;
    return lane_id() < kChunkSlabs && holds(token, kSlabTokens) ? __ldg(table_ + (token >> args_.block_shift)) : 0;
  }

  const RunArgs& args_;
  const int32_t* table_;
  int64_t head_offset_;
  KeyRange range_;
  int chunk_, blocks_, next_blocks_;
};

// Tiles [begin, end) of 64 keys that an item's rows need of its chunks.
struct TileRange {
  int begin, end;
};
__device__ __forceinline__ TileRange tiles_of(const Item& item, KeyRange range) {
  return {max(item.chunk_begin * kChunkTiles, range.begin / kTileTokens),
          min(item.chunk_end * kChunkTiles, div_ceil(range.end, kTileTokens))};
}

// Where finished chunks go: into the running state, or each to its own partial result.
template <typename T, int kDim>
class ChunkSink {
 public:
  __device__ __forceinline__ ChunkSink(const RunArgs& args, const Item& item, int kv_head, int tile_rows,
                                       int row_in_tile)
      : args_(args),
        kv_head_(kv_head),
        split_(item.split),
        folds_(item.folds != 0),
        tile_rows_(tile_rows),
        partial_(int64_t{item.state} + row_in_tile) {
    state_.clear();
  }
  __device__ __forceinline__ void take(const WarpRows& rows, RowState<kDim>& chunk) {
    close_chunk(chunk);
    if (folds_) {
      merge_chunk(chunk, args_.scale_log2, state_);
    } else {
      store_partial(args_, rows, kv_head_, partial_, chunk);
      partial_ += tile_rows_;
    }
    chunk.clear();
  }
  __device__ __forceinline__ void finish(const Sequence& seq, const WarpRows& rows) {
    if (!folds_) return;
    if (split_ < 0) {
      store_output<T>(args_, seq, rows, kv_head_, state_);
    } else {
      store_partial(args_, rows, kv_head_, partial_, state_);
    }
  }

 private:
  const RunArgs& args_;
  int kv_head_, split_;
  bool folds_;
  int tile_rows_;
  int64_t partial_;
  RowState<kDim> state_;
};

}  // namespace pe::cuda::attention
