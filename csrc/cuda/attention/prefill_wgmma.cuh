// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share on sm_90a: what prefill.cuh does, bit for bit, with warpgroup-wide products.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D in {64, 128}; H % HK == 0
// a CTA of 2 warpgroups x 64 rows · tile: 128 rows x 64 keys · smem: ring of 6 steps (K, V), 192 KiB at D = 128
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
#include "cuda/attention/prefill.cuh"
#include "cuda/common/wgmma.cuh"

namespace pe::cuda::attention {

template <int kDim>
constexpr bool kFitsWarpgroups = kDim == 64 || kDim == 128;  // whole blocks of the swizzle, registers for the rest

#if defined(PE_WGMMA)

// Step i multiplies K of tile i and V of tile i - 1 (see run_steps). While the warpgroup in front works on step i, the
// other may still need i - 1; i + 1 is there, and the rest of the ring is on its way. The last to be asked for takes
// the place of i - 2. It has two steps to arrive in: an L2 under load takes longer than one.
constexpr int kSteps = 6;
constexpr int kStepsAhead = kSteps - 2;
constexpr int kWarpgroupRows = kWarpgroupWarps * kWarpRows;

// All of it in blocks of 64 columns (wgmma.cuh): [64 rows][64 columns], D / 64 of them per tile.
constexpr int kSwizzleBlockBytes = kTileTokens * kSwizzleRowBytes;
template <int kDim>
struct WarpgroupMemory {
  static constexpr int kTileBytes = kDim / kSwizzleColumns * kSwizzleBlockBytes;

  struct {
    unsigned char keys[kTileBytes], values[kTileBytes];
  } steps[kSteps];
  uint64_t done[2];  // barriers: of even and odd steps
};
template <int kDim>
__device__ __forceinline__ WarpgroupMemory<kDim>& warpgroup_memory(unsigned char* slots) {
  static_assert(sizeof(WarpgroupMemory<kDim>) + kSwizzleAtomBytes <= ring_bytes<kDim>(kDeepSlots<kDim>),
                "fits where warps have deep rings; an sm_90 always has room for these");
  const unsigned past = smem_address(slots) % kSwizzleAtomBytes;
  return *reinterpret_cast<WarpgroupMemory<kDim>*>(slots + (past == 0 ? 0 : kSwizzleAtomBytes - past));
}

// Where a lane's 16-byte vectors lie when a warp copies 8 rows of a matrix: its j-th is in row kRows j + row, always in
// the same column. The 8 rows are one row of every block's atoms, so row % 8 is the row itself, and the swizzle of the
// j-th vector differs from that of the first by kRows j, in address bits that the atom's base leaves zero.
template <int kDim>
struct LaneVectors {
  static constexpr int kRowVectors = kDim / 8, kBlockVectors = kSwizzleColumns / 8;
  static constexpr int kRows = kWarpSize / kRowVectors, kCount = 8 / kRows;

  static __device__ __forceinline__ int row() { return lane_id() / kRowVectors; }
  static __device__ __forceinline__ int column() { return lane_id() % kRowVectors * 8; }
  static __device__ __forceinline__ int place() {  // of the first vector, in bytes from row 0 in block 0
    const int vector = lane_id() % kRowVectors;
    return vector / kBlockVectors * kSwizzleBlockBytes + row() * kSwizzleRowBytes +
           (vector % kBlockVectors ^ row()) * 16;
  }
  static __device__ __forceinline__ unsigned char* to(unsigned char* smem, int place, int j) {
    return smem + (place ^ kRows * j * 16) + kRows * j * kSwizzleRowBytes;
  }
};

// The steps' tiles on their way from the caches to shared memory. Of each tile a warp copies 8 rows, which lie in one
// physical block; the block's number is fetched a step before it is needed.
template <typename T, int kDim>
class StepRing {
 public:
  __device__ __forceinline__ StepRing(const RunArgs& args, const Job& job, WarpgroupMemory<kDim>& memory)
      : args_(args),
        job_(job),
        memory_(memory),
        place_(warp_id() * kSwizzleAtomBytes + Vectors::place()),
        num_tiles_(job.tiles.end - job.tiles.begin),
        first_(job.tiles.begin * kTileTokens + warp_id() * kRows - job.keys.begin),
        num_keys_(job.keys.end - job.keys.begin) {
    static_assert(kTileTokens == kWarps * kRows && kSlabTokens % kRows == 0, "a warp's rows lie in one slab");
    if (threadIdx.x == 0) {
      mbarrier_init(&memory.done[0], kWarps);
      mbarrier_init(&memory.done[1], kWarps);
    }
    next_block_ = load_block(0);
    for (int step = 0; step < kStepsAhead; ++step) request(step, step);
    cp_async_wait<kStepsAhead - 2>();  // steps 0 and 1 have arrived
    fence_for_wgmma();
    __syncthreads();
  }

  __device__ __forceinline__ int num_tiles() const { return num_tiles_; }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_.steps[slot_].keys; }
  __device__ __forceinline__ const unsigned char* values() const { return memory_.steps[slot_].values; }

  // Before the products of a step: all warps are done with step - 2, and their copies of this one have arrived.
  __device__ __forceinline__ void enter(int step) const {
    if (step >= 2) mbarrier_wait(&memory_.done[step % 2], ((step - 2) / 2) & 1);
  }
  // While the products of the entered step run: asks for a later one, in the place of step - 2.
  __device__ __forceinline__ void request_ahead(int step) {
    request(step + kStepsAhead, slot_ < kSteps - kStepsAhead ? slot_ + kStepsAhead : slot_ + kStepsAhead - kSteps);
  }
  // Under the products, before it asks for more: this warp's copies of step + 2 have arrived, later ones need not have.
  // The fence may wait for all copies on their way, so those that it meets are a step old.
  __device__ __forceinline__ void settle() const {
    cp_async_wait<kStepsAhead - 3>();
    fence_for_wgmma();
  }
  // After the products of a step. Two barriers take turns, because a warpgroup may arrive for this step before
  // the other has waited for the last; it cannot arrive for the next but one before that.
  __device__ __forceinline__ void leave(int step) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(&memory_.done[step % 2]);
    slot_ = slot_ == kSteps - 1 ? 0 : slot_ + 1;
  }
  // After the last step.
  __device__ __forceinline__ void close() {
    __syncthreads();
    if (threadIdx.x == 0) {
      mbarrier_invalidate(&memory_.done[0]);
      mbarrier_invalidate(&memory_.done[1]);
    }
  }

 private:
  using Vectors = LaneVectors<kDim>;
  static constexpr int kRows = 8;

  // This warp's first key of a tile, tiles counted from the item's first and keys from the first that is read.
  __device__ __forceinline__ int first_key(int tile) const { return first_ + tile * kTileTokens; }
  // 0 where nothing will be read: only table entries of keys that some row sees are valid.
  __device__ __forceinline__ int load_block(int tile) const {
    const int key = first_key(tile);
    if (tile >= num_tiles_ || key >= num_keys_ || key + kRows <= 0) return 0;
    return __ldg(args_.block_tables + job_.table_offset + ((job_.keys.begin + key) >> args_.block_shift));
  }
  // Keys that no row sees are not read and become zeros; their addresses still lie in the block.
  __device__ __forceinline__ void copy_tile(unsigned char* to, int tile, const void* cache) const {
    const T* const from = static_cast<const T*>(cache) + offset_;
    const int64_t step = Vectors::kRows * args_.token_stride;
    const int key = first_key(tile) + Vectors::row();
#pragma unroll
    for (int j = 0; j < Vectors::kCount; ++j) {
      const bool valid = static_cast<unsigned>(key + Vectors::kRows * j) < static_cast<unsigned>(num_keys_);
      cp_async_16_zfill(Vectors::to(to, place_, j), from + j * step, valid);
    }
  }
  __device__ __forceinline__ void request(int step, int slot) {
    if (step >= 1 && step <= num_tiles_) copy_tile(memory_.steps[slot].values, step - 1, args_.v);
    const int64_t in_block = (job_.keys.begin + first_key(step)) & ((1 << args_.block_shift) - 1);
    offset_ = next_block_ * args_.block_stride + job_.head_offset + (in_block + Vectors::row()) * args_.token_stride +
              Vectors::column();
    next_block_ = load_block(step + 1);
    if (step < num_tiles_) copy_tile(memory_.steps[slot].keys, step, args_.k);
    cp_async_commit();  // also when empty: groups are counted
  }

  const RunArgs& args_;
  const Job& job_;
  WarpgroupMemory<kDim>& memory_;
  const int place_;  // of this lane's vectors in a tile
  const int num_tiles_, first_, num_keys_;
  int64_t offset_ = 0;  // of this lane's vectors in the caches: of the tile whose K was asked for last, V comes next
  int next_block_;
  int slot_ = 0;  // of the step being worked on
};

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

// A warpgroup without rows still does its share for the ring.
template <typename Ring>
__device__ __forceinline__ void only_fill(Ring& ring) {
  for (int step = 0; step < ring.num_tiles(); ++step) {
    ring.enter(step);
    ring.settle();
    ring.request_ahead(step);
    ring.leave(step);
  }
}

__device__ __forceinline__ bool begins_chunk(const Job& job, int tile) {
  return tile % kChunkTiles == 0 || tile == job.tiles.begin;
}

__device__ __forceinline__ void hide_unseen(const RunArgs& args, const Job& job, const KeyRange& plain, int tile,
                                            TileScores& scores) {
  const int token = tile * kTileTokens;
  if (token < plain.begin || token + kTileTokens > plain.end) hide_unseen<2>(args, job, token, scores);
}

// Step 0: S of tile 0 and its softmax. Step i: S of tile i and acc += weights v of tile i - 1, then the softmax of tile
// i. Step n: what is left, acc += weights v of the last tile.
template <typename Format, int kDim, typename Ring>
__device__ __forceinline__ void run_steps(const RunArgs& args, const Job& job, const uint32_t (&q)[kDim / 16][4],
                                          Ring& ring) {
  using T = typename Format::Element;
  RowState<kDim, 2> chunk, running;
  chunk.clear();
  running.clear();
  TileScores scores;
  TileWeights weights;
  float decay[2];
  // Keys that all rows of the warp see. In registers: the scores wait for no load from shared memory.
  const KeyRange plain = {job.last.begin, job.first.end};

  wgmma_fence();
  start_scores<T, kDim>(q, ring.keys(), scores);
  ring.settle();
  ring.request_ahead(0);
  wgmma_wait<0>();
  hold(scores);
  Format::scale_scores(args, job, scores);
  int tile = job.tiles.begin;
  hide_unseen(args, job, plain, tile, scores);
  weigh_scores<2>(scores, args.scale_log2, chunk.max, chunk.sum, decay);  // no acc yet to rescale
  pack_weights<T, 2>(scores, weights);
  ring.leave(0);

  const int num_tiles = ring.num_tiles();
  for (int step = 1; step < num_tiles; ++step) {
    ring.enter(step);
    wgmma_fence();
    start_scores<T, kDim>(q, ring.keys(), scores);
    start_values<T, kDim>(weights, ring.values(), begins_chunk(job, tile), chunk.acc);
    ring.settle();
    ring.request_ahead(step);

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
    Format::scale_scores(args, job, scores);
    hide_unseen(args, job, plain, tile, scores);
    weigh_scores<2>(scores, args.scale_log2, max, sum, decay);
    compute_before_wait(fminf(sum[0], sum[1]));  // all of this runs under the product with v

    wgmma_wait<0>();
    hold(chunk.acc);
    hold(weights);
    ring.leave(step);
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
  Format::scale_values(args, job, chunk.acc);
  keep_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  end_item<T, kDim>(args, job, running);
}

// An item through a ring of steps, for this warp.
template <typename Format, int kDim, typename Ring>
__device__ __forceinline__ void run_warpgroup_item(const RunArgs& args, const Job& job,
                                                   const uint32_t (&q)[kDim / 16][4], Ring& ring) {
  if (job.tile_rows > warp_id() / kWarpgroupWarps * kWarpgroupRows) {
    run_steps<Format, kDim>(args, job, q, ring);
  } else {
    only_fill(ring);
  }
  ring.close();
}

template <typename T, int kDim>
__device__ __forceinline__ void run_warpgroups(const RunArgs& args, const Job& job, unsigned char* slots) {
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim, 2>(args, job, q);
  StepRing<T, kDim> ring(args, job, warpgroup_memory<kDim>(slots));
  run_warpgroup_item<KvFormat<T, kDim>, kDim>(args, job, q, ring);
}

#endif

// A CTA's item by the fastest way this GPU has.
template <typename T, int kDim>
__device__ __forceinline__ void run_prefill_item(const RunArgs& args, const Job& job, unsigned char* slots) {
#if defined(PE_WGMMA)
  if constexpr (kFitsWarpgroups<kDim>) return run_warpgroups<T, kDim>(args, job, slots);
#endif
  run_cta_item<T, kDim>(args, job, slots);
}

}  // namespace pe::cuda::attention
