// SPDX-License-Identifier: Apache-2.0
// The way from block tables to shared memory: slabs of 16 keys, each inside one physical block.
//
// Only keys that some row of the item sees are read, block table entries included; the rest becomes zeros. A zero
// weight would not save a product with a NaN left behind in an unused slot.
#pragma once
#include "cuda/attention/job.cuh"
#include "cuda/common/async_copy.cuh"

namespace pe::cuda::attention {

// Where one warp gets its keys and values. Lane l holds the physical block of slab l of the chunk being loaded, and
// already that of the next chunk: no copy waits for a block table.
template <typename T, int kDim>
class KvStream {
 public:
  __device__ __forceinline__ KvStream(const RunArgs& args, const Job& job) : args_(args) { start(job); }
  // Streams of later jobs; without a job to begin with, for those who get it later.
  __device__ __forceinline__ explicit KvStream(const RunArgs& args) : args_(args) {}
  __device__ __forceinline__ void start(const Job& job) {
    job_ = &job;
    const int chunk = job.tiles.begin / kChunkTiles;
    blocks_ = load_blocks(chunk);
    next_blocks_ = load_blocks(chunk + 1);
  }

  // Before a tile's first copy, tiles in ascending order.
  __device__ __forceinline__ void enter_tile(int tile) {
    if (tile % kChunkTiles != 0 || tile == job_->tiles.begin) return;
    blocks_ = next_blocks_;
    next_blocks_ = load_blocks(tile / kChunkTiles + 1);
  }

  // Copies kRows rows from key `token` on to shared memory; they lie in one slab of the entered tile.
  template <int kRows>
  __device__ __forceinline__ void copy_rows(unsigned char* to, int token, bool values) const {
    const int64_t block = __shfl_sync(kFullMask, blocks_, token / kSlabTokens % kChunkSlabs);
    const int64_t in_block = token & ((1 << args_.block_shift) - 1);
    const T* pool = static_cast<const T*>(values ? args_.v : args_.k);
    const T* from = pool + block * args_.block_stride + job_->head_offset + in_block * args_.token_stride;
    const KeyRange keys = job_->keys;
    constexpr int kRowVectors = kDim / 8, kVectors = kRows * kRowVectors;
#pragma unroll 4  // more addresses at a time would be spilled
    for (int j = 0; j < div_ceil(kVectors, kWarpSize); ++j) {
      const int index = j * kWarpSize + lane_id();
      if (kVectors % kWarpSize != 0 && index >= kVectors) break;
      const int row = index / kRowVectors, vector = index % kRowVectors;
      const bool valid = token + row >= keys.begin && token + row < keys.end;
      const T* source = valid ? from + row * args_.token_stride + vector * 8 : pool;
      cp_async_16_zfill(to + row * kRowBytes<kDim> + vector * 16, source, valid);
    }
  }

 private:
  __device__ __forceinline__ int load_blocks(int chunk) const {
    const int token = chunk * kChunkTokens + lane_id() * kSlabTokens;
    if (lane_id() >= kChunkSlabs || !holds_keys(*job_, token, kSlabTokens)) return 0;
    return __ldg(args_.block_tables + job_->table_offset + (token >> args_.block_shift));
  }

  const RunArgs& args_;
  const Job* job_ = nullptr;
  int blocks_ = 0, next_blocks_ = 0;
};

}  // namespace pe::cuda::attention
