// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share on sm_90a: what prefill.cuh does, bit for bit, with warpgroup-wide products.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D in {64, 128}; H % HK == 0
// a CTA of 2 warpgroups x 64 rows · tile: 128 rows x 64 keys · smem: q and a ring of 5 steps (K, V), 192 KiB at D = 128
// traffic: 4 * 128 * 64 * D flop per 64 * D * 2 * sizeof(kv) bytes from L2 = 128 flop/byte -> bound by the tensor
// cores;
//   of shared memory a tile reads 6 and writes 2 times 64 * D * 2 bytes: 1024 cycles at D = 128, as many as its
//   products
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
#include "cuda/attention/prefill.cuh"
#include "cuda/common/wgmma.cuh"

namespace pe::cuda::attention {

template <int kDim>
constexpr bool kFitsWarpgroups = kDim == 64 || kDim == 128;  // whole blocks of the swizzle, registers for the rest

#if defined(PE_WGMMA)

// Of n steps, step i multiplies K of tile i and V of tile i - 1 (see run_warpgroups). The warpgroup in front works on
// step i, the other on i - 1 or i; i + 1 and i + 2 have arrived or are about to, i + 3 is asked for in step i.
constexpr int kSteps = 5;
constexpr int kStepsAhead = 3;
constexpr int kWarpgroupRows = kWarpgroupWarps * kWarpRows;

// All of it in blocks of 64 columns (wgmma.cuh): [64 rows][64 columns], D / 64 of them per tile.
template <int kDim>
struct WarpgroupMemory {
  static constexpr int kBlockBytes = kTileTokens * kSwizzleRowBytes;
  static constexpr int kBlocks = kDim / kSwizzleColumns;
  static constexpr int kTileBytes = kBlocks * kBlockBytes;
  static_assert(kWarpgroupRows == kTileTokens, "q of a warpgroup is laid out as a tile of keys");

  unsigned char queries[kCtaRows / kWarpgroupRows][kTileBytes];
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

// Copies 8 rows of one atom row (rows r of which `valid(r)` holds, zeros for the others) by one warp: lane by lane 16
// bytes, consecutive in memory. `from(r)` is where row r begins; `to` is the row 0 in block 0.
template <int kDim, typename From, typename Valid>
__device__ __forceinline__ void copy_atom_rows(unsigned char* to, const void* anywhere, From from, Valid valid) {
  constexpr int kRowVectors = kDim / 8, kBlockVectors = kSwizzleColumns / 8;
#pragma unroll
  for (int j = 0; j < 8 * kRowVectors / kWarpSize; ++j) {
    const int index = j * kWarpSize + lane_id();
    const int row = index / kRowVectors, vector = index % kRowVectors;
    unsigned char* const place = to + vector / kBlockVectors * WarpgroupMemory<kDim>::kBlockBytes +
                                 row * kSwizzleRowBytes + (vector % kBlockVectors ^ row) * 16;
    const bool exists = valid(row);
    cp_async_16_zfill(place, exists ? from(row) + vector * 8 : anywhere, exists);
  }
}

// The steps' tiles on their way from the caches to shared memory. Of each tile a warp copies 8 rows, which lie in one
// physical block; the block's number is fetched a step before it is needed.
template <typename T, int kDim>
class StepRing {
 public:
  __device__ __forceinline__ StepRing(const RunArgs& args, const Job& job, WarpgroupMemory<kDim>& memory)
      : args_(args), job_(job), memory_(memory) {
    static_assert(kTileTokens == kWarps * kRows && kSlabTokens % kRows == 0, "a warp's rows lie in one slab");
    if (threadIdx.x == 0) {
      barrier_init(&memory.done[0], kWarps);
      barrier_init(&memory.done[1], kWarps);
    }
    next_block_ = load_block(0);
    copy_queries();
    for (int step = 0; step < kStepsAhead; ++step) request(step, step);
    cp_async_wait<kStepsAhead - 2>();  // q and steps 0 and 1 have arrived
    fence_for_wgmma();
    __syncthreads();
  }

  __device__ __forceinline__ int num_tiles() const { return job_.tiles.end - job_.tiles.begin; }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_.steps[slot_].keys; }
  __device__ __forceinline__ const unsigned char* values() const { return memory_.steps[slot_].values; }

  // Before the products of a step: all warps are done with step - 2, and their copies of this one have arrived.
  __device__ __forceinline__ void enter(int step) const {
    if (step >= 2) barrier_wait(&memory_.done[step % 2], (step - 2) / 2);
  }
  // While the products of the entered step run: asks for a later one, in the place of step - 2.
  __device__ __forceinline__ void request_ahead(int step) {
    request(step + kStepsAhead, slot_ < kSteps - kStepsAhead ? slot_ + kStepsAhead : slot_ + kStepsAhead - kSteps);
  }
  // After the products of a step. Two barriers take turns, because a warpgroup may arrive for this step before the
  // other has waited for the last; it cannot arrive for the next but one before that.
  __device__ __forceinline__ void leave(int step) {
    cp_async_wait<1>();  // all but step + 3: step + 2 has arrived
    fence_for_wgmma();
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(&memory_.done[step % 2]);
    slot_ = slot_ == kSteps - 1 ? 0 : slot_ + 1;
  }
  // After the last step.
  __device__ __forceinline__ void close() {
    __syncthreads();
    if (threadIdx.x == 0) {
      barrier_destroy(&memory_.done[0]);
      barrier_destroy(&memory_.done[1]);
    }
  }

 private:
  static constexpr int kRows = 8;

  __device__ __forceinline__ int first_key(int tile) const {  // of this warp's rows; tiles count from the item's first
    return (job_.tiles.begin + tile) * kTileTokens + warp_id() * kRows;
  }
  // 0 where nothing will be read: only table entries of keys that some row sees are valid.
  __device__ __forceinline__ int load_block(int tile) const {
    const int token = first_key(tile);
    if (tile >= num_tiles() || !holds_keys(job_, token, kRows)) return 0;
    return __ldg(args_.block_tables + job_.table_offset + (token >> args_.block_shift));
  }
  __device__ __forceinline__ void copy_tile(unsigned char* to, int tile, const void* cache) const {
    const int token = first_key(tile);
    const int64_t in_block = token & ((1 << args_.block_shift) - 1);
    const T* const pool = static_cast<const T*>(cache);
    const T* const first = pool + block_ * args_.block_stride + job_.head_offset + in_block * args_.token_stride;
    const KeyRange keys = job_.keys;
    copy_atom_rows<kDim>(
        to + warp_id() * kSwizzleAtomBytes, pool, [&](int row) { return first + row * args_.token_stride; },
        [&](int row) { return token + row >= keys.begin && token + row < keys.end; });
  }
  __device__ __forceinline__ void request(int step, int slot) {
    if (step >= 1 && step <= num_tiles()) copy_tile(memory_.steps[slot].values, step - 1, args_.v);
    block_ = next_block_;
    next_block_ = load_block(step + 1);
    if (step < num_tiles()) copy_tile(memory_.steps[slot].keys, step, args_.k);
    cp_async_commit();  // also when empty: groups are counted
  }
  // This warp's 16 rows; with step 0's group. Rows that do not exist are zeros.
  __device__ __forceinline__ void copy_queries() const {
    unsigned char* const to = memory_.queries[warp_id() / kWarpgroupWarps];
    const T* const q = static_cast<const T*>(args_.q);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int atom = warp_id() % kWarpgroupWarps * 2 + half;
      copy_atom_rows<kDim>(
          to + atom * kSwizzleAtomBytes, q,
          [&](int row) {
            return q + row_offset(args_, job_.query_begin, job_.first_row + 8 * half + row, job_.kv_head,
                                  args_.q_token_stride, args_.q_head_stride);
          },
          [&](int row) { return 8 * half + row < job_.num_rows; });
    }
  }

  const RunArgs& args_;
  const Job& job_;
  WarpgroupMemory<kDim>& memory_;
  int64_t block_ = 0;  // of the tile whose K was asked for last, and whose V comes next
  int next_block_;
  int slot_ = 0;  // of the step being worked on
};

// scores = q k^T, ascending over head_dim. Runs on after the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_scores(uint64_t q, const unsigned char* keys, TileScores& scores) {
  constexpr int kBlockBytes = WarpgroupMemory<kDim>::kBlockBytes, kBlockSlabs = kSwizzleColumns / 16;
  const uint64_t k = matrix_descriptor(keys, kBlockBytes);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int at = i / kBlockSlabs * kBlockBytes + i % kBlockSlabs * 32;
    wgmma_scores<T>(scores, advance(q, at), advance(k, at), i > 0);
  }
  wgmma_commit();
}

// acc += weights v, ascending over the keys. Runs on after the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_values(const TileWeights& weights, const unsigned char* values,
                                             float (&acc)[kDim / 8][4]) {
  const uint64_t v = matrix_descriptor(values, WarpgroupMemory<kDim>::kBlockBytes);
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    wgmma_values<T>(acc, weights[s], advance(v, s * kSlabTokens * kSwizzleRowBytes));
  }
  wgmma_commit();
}

// A warpgroup without rows still copies its share.
template <typename T, int kDim>
__device__ __forceinline__ void only_copy(StepRing<T, kDim>& ring) {
  for (int step = 0; step < ring.num_tiles(); ++step) {
    ring.enter(step);
    ring.request_ahead(step);
    ring.leave(step);
  }
}

// Step 0: S of tile 0 and its softmax. Step i: S of tile i and acc += weights v of tile i - 1, then the softmax of tile
// i. Step n: what is left, acc += weights v of the last tile.
template <typename T, int kDim>
__device__ __forceinline__ void run_steps(const RunArgs& args, const Job& job, uint64_t q, StepRing<T, kDim>& ring) {
  RowState<kDim, 2> chunk, running;
  chunk.clear();
  running.clear();
  TileScores scores;
  TileWeights weights;
  float decay[2];

  wgmma_fence();
  start_scores<T, kDim>(q, ring.keys(), scores);
  ring.request_ahead(0);
  wgmma_wait<0>();
  hold(scores);
  int token = job.tiles.begin * kTileTokens;
  if (!sees_whole_tile(job, token)) hide_unseen<2>(args, job, token, scores);
  weigh_scores<2>(scores, args.scale_log2, chunk.max, chunk.sum, decay);  // acc is 0: nothing to rescale
  pack_weights<T, 2>(scores, weights);
  ring.leave(0);

  const int num_tiles = ring.num_tiles();
  for (int step = 1; step < num_tiles; ++step) {
    ring.enter(step);
    wgmma_fence();
    start_scores<T, kDim>(q, ring.keys(), scores);
    start_values<T, kDim>(weights, ring.values(), chunk.acc);
    ring.request_ahead(step);

    const int tile = job.tiles.begin + step;
    const bool begins_chunk = tile % kChunkTiles == 0;
    float max[2], sum[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      max[i] = begins_chunk ? kNoScore : chunk.max[i];
      sum[i] = begins_chunk ? 0 : chunk.sum[i];
    }
    token = tile * kTileTokens;
    wgmma_wait<1>();
    hold(scores);
    if (!sees_whole_tile(job, token)) hide_unseen<2>(args, job, token, scores);
    weigh_scores<2>(scores, args.scale_log2, max, sum, decay);

    wgmma_wait<0>();
    hold(chunk.acc);
    hold(weights);
    ring.leave(step);
    if (begins_chunk) end_chunk(args, job, tile / kChunkTiles - 1, chunk, running);
    rescale<kDim, 2>(decay, chunk.acc);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      chunk.max[i] = max[i];
      chunk.sum[i] = sum[i];
    }
    pack_weights<T, 2>(scores, weights);
  }

  ring.enter(num_tiles);
  wgmma_fence();
  start_values<T, kDim>(weights, ring.values(), chunk.acc);
  wgmma_wait<0>();
  hold(chunk.acc);
  hold(weights);
  end_chunk(args, job, (job.tiles.end - 1) / kChunkTiles, chunk, running);
  end_item<T>(args, job, running);
}

template <typename T, int kDim>
__device__ __forceinline__ void run_warpgroups(const RunArgs& args, const Job& job, unsigned char* slots) {
  WarpgroupMemory<kDim>& memory = warpgroup_memory<kDim>(slots);
  StepRing<T, kDim> ring(args, job, memory);
  // The same in all lanes, which the compiler sees from the shuffle: descriptors can live in uniform registers.
  const int warpgroup = __shfl_sync(kFullMask, warp_id(), 0) / kWarpgroupWarps;
  if (job.tile_rows > warpgroup * kWarpgroupRows) {
    run_steps<T, kDim>(args, job, matrix_descriptor(memory.queries[warpgroup], 16), ring);
  } else {
    only_copy(ring);
  }
  ring.close();
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
