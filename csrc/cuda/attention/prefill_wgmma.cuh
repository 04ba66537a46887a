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
// What keeps the tensor cores busy while exponentials are computed: inside a warpgroup, S of the next tile and acc +=
// weights v of this one are issued together, and the softmax of the next runs under the latter; and the two warpgroups
// issue their products in turns, so that one has its scores and computes weights while the other multiplies.
//
// One warp asks the copy engine for all of K and V (bulk_copy.cuh), some steps ahead and on over the borders of items:
// it also takes the tickets. A step costs it an instruction per box, and the others nothing.
#pragma once
#include "cuda/attention/kv_maps.h"
#include "cuda/attention/prefill.cuh"
#include "cuda/common/wgmma.cuh"

namespace pe::cuda::attention {

#if defined(PE_WGMMA)

// Step i of an item multiplies K of tile i and V of tile i - 1 (see run_steps). The last step to be asked for takes the
// place of step i - 2, which the warpgroup behind has just left.
constexpr int kStepsAhead = kSteps - 2;
constexpr int kWarpgroupRows = kWarpgroupWarps * kWarpRows;

// Of shared memory that kernels of this path have.
template <int kDim>
struct WarpgroupMemory {
  static constexpr int kTileBytes = kTileTokens * kDim * 2;
  struct {
    unsigned char keys[kTileBytes];    // [D / 64][64 rows][64 columns], as wgmma.cuh says
    unsigned char values[kTileBytes];  // boxes: [4 slabs][D / 64][16 rows][64 columns]
  } steps[kSteps];
  Job items[kLiveItems];  // as the first warp of the CTA sees them
  Job jobs[2][kWarps];    // this item and the next one, as each warp sees them
  uint64_t full[kSteps];  // barriers: the step's tiles have arrived
  uint64_t done[kSteps];  // all warps have left the step
  uint64_t turn[2];       // of each warpgroup: it may issue its products
  uint64_t together[2];   // of each warpgroup: for its own warps to meet at

  __device__ __forceinline__ void init_barriers() {
    for (int i = 0; i < kSteps; ++i) {
      bulk_barrier_init(full + i, 1);
      bulk_barrier_init(done + i, kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      bulk_barrier_init(turn + i, kWarpgroupWarps);
      bulk_barrier_init(together + i, kWarpgroupWarps);
    }
    bulk_barrier_fence();
  }
  __device__ __forceinline__ void destroy_barriers() {
    for (int i = 0; i < kSteps; ++i) {
      bulk_barrier_destroy(full + i);
      bulk_barrier_destroy(done + i);
    }
    for (int i = 0; i < 2; ++i) {
      bulk_barrier_destroy(turn + i);
      bulk_barrier_destroy(together + i);
    }
  }
};

struct StepPosition {
  int slot = 0;
  uint32_t parity = 0;  // of the passes through the ring
  __device__ __forceinline__ void advance() {
    if (++slot < kSteps) return;
    slot = 0;
    parity ^= 1;
  }
};

// ---- the warp that fetches ------------------------------------------------------------------------------------------

template <int kDim>
class StepFetcher {
 public:
  __device__ __forceinline__ StepFetcher(const RunArgs& args, const KvMaps& maps, WarpgroupMemory<kDim>& memory)
      : args_(args), maps_(maps), memory_(memory) {}

  __device__ __forceinline__ void start() {
    if (lane_id() == 0) ticket_ = take_cta_ticket(args_, true);
    for (int i = 0; i < kStepsAhead; ++i) fetch();
  }

  // Asks for the next step in line, of the item being read or of the next one. All lanes of the warp call.
  __device__ __forceinline__ void fetch() {
    if (ended_) return;
    if (tile_ == end_tile_) begin_item();
    bulk_wait(memory_.done + at_.slot, at_.parity ^ 1);
    if (ended_) {
      if (lane_id() == 0) bulk_expect(memory_.full + at_.slot, 0);
      return;
    }
    ++tile_;
    copy_tiles();
    at_.advance();
  }

 private:
  static constexpr int kColumnBlocks = kDim / kBoxColumns, kKeyBoxes = kTileSlabs * kColumnBlocks;
  static constexpr int kColumnBoxBytes = kBoxTokens * kBoxRowBytes;

  // Its first step has K of its first tile, its last one V of its last tile: tile_ runs from the tile before the first
  // to the last.
  __device__ __forceinline__ void begin_item() {
    const int ticket = __shfl_sync(kFullMask, ticket_, 0);
    Job& job = memory_.items[num_items_++ % kLiveItems];
    ended_ = ticket >= args_.plan.header->num_cta_items * args_.num_kv_heads;
    if (ended_) {
      if (lane_id() == 0) job.kv_head = -1;
      return;
    }
    if (lane_id() == 0) ticket_ = take_cta_ticket(args_, false);  // long before it is needed
    set_cta_job(args_, args_.plan.cta_items[ticket / args_.num_kv_heads], ticket % args_.num_kv_heads, 0, &job);
    job_ = &job;
    tile_ = job.tiles.begin - 1;
    end_tile_ = job.tiles.end;
    blocks_ = load_blocks(job.tiles.begin / kChunkTiles);
    next_blocks_ = load_blocks(job.tiles.begin / kChunkTiles + 1);
  }

  // K of tile_ and V of the tile before, where the item has them. Lanes 0 .. kKeyBoxes - 1 ask for a box of K each, the
  // next four for one of V; boxes that hold no key of the item are left out.
  __device__ __forceinline__ void copy_tiles() {
    const bool of_keys = lane_id() < kKeyBoxes;
    const int slab_in_tile = lane_id() % kTileSlabs, tile = of_keys ? tile_ : tile_ - 1;
    const int token = tile * kTileTokens + slab_in_tile * kSlabTokens;
    if (tile_ % kChunkTiles == 0 && tile_ != job_->tiles.begin) {
      blocks_ = next_blocks_;
      next_blocks_ = load_blocks(tile_ / kChunkTiles + 1);
    }
    const int block_of_keys = __shfl_sync(kFullMask, blocks_, (tile_ * kTileSlabs + slab_in_tile) % kChunkSlabs);
    const int block = of_keys ? block_of_keys : block_of_values_;
    block_of_values_ = block_of_keys;
    const bool held = lane_id() < kKeyBoxes + kTileSlabs && tile >= job_->tiles.begin && tile < job_->tiles.end &&
                      holds_keys(*job_, token, kSlabTokens);
    const unsigned all = __ballot_sync(kFullMask, held), keys = all & ((1u << kKeyBoxes) - 1);
    uint64_t* const full = memory_.full + at_.slot;
    if (lane_id() == 0) bulk_expect(full, __popc(keys) * kColumnBoxBytes + __popc(all ^ keys) * box_bytes(kDim));
    __syncwarp();
    if (!held) return;
    const int in_block = token & ((1 << args_.block_shift) - 1), columns = lane_id() / kTileSlabs;
    auto& step = memory_.steps[at_.slot];
    if (of_keys) {
      unsigned char* const to = step.keys + columns * kTileTokens * kBoxRowBytes + slab_in_tile * kColumnBoxBytes;
      copy_columns(to, &maps_.key_columns, in_block, columns, job_->kv_head, block, full);
    } else {
      copy_box(step.values + slab_in_tile * box_bytes(kDim), &maps_.v, in_block, job_->kv_head, block, full);
    }
  }

  // Lane l holds the physical block of slab l of a chunk.
  __device__ __forceinline__ int load_blocks(int chunk) const {
    const int token = chunk * kChunkTokens + lane_id() * kSlabTokens;
    if (lane_id() >= kChunkSlabs || !holds_keys(*job_, token, kSlabTokens)) return 0;
    return __ldg(args_.block_tables + job_->table_offset + (token >> args_.block_shift));
  }

  const RunArgs& args_;
  const KvMaps& maps_;
  WarpgroupMemory<kDim>& memory_;
  const Job* job_ = nullptr;
  int ticket_ = 0;  // in lane 0: of the next item
  int tile_ = 0, end_tile_ = 0, num_items_ = 0;
  int blocks_ = 0, next_blocks_ = 0, block_of_values_ = 0;
  StepPosition at_;
  bool ended_ = false;
};

// ---- all warps ------------------------------------------------------------------------------------------------------

// A warp's way through the steps of all items.
template <int kDim>
class Steps {
 public:
  __device__ __forceinline__ Steps(const RunArgs& args, const KvMaps& maps, WarpgroupMemory<kDim>& memory)
      : args_(args), memory_(memory), fetcher_(args, maps, memory) {
    if (warp_id() == 0) fetcher_.start();
    if (warpgroup() == 1) pass_turn();
  }

  static __device__ __forceinline__ int warpgroup() { return warp_id() / kWarpgroupWarps; }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_.steps[at_.slot].keys; }
  __device__ __forceinline__ unsigned char* values() const { return memory_.steps[at_.slot].values; }

  // The job of the next item; nullptr after the last. Called under the last step of the item before.
  __device__ __forceinline__ const Job* next_job(bool first) {
    StepPosition next = at_;
    if (!first) next.advance();
    bulk_wait(memory_.full + next.slot, next.parity);
    const Job& item = memory_.items[num_items_ % kLiveItems];
    if (item.kv_head < 0) return nullptr;
    Job* const job = &memory_.jobs[num_items_++ % 2][warp_id()];
    narrow_job(args_, item, warp_id() * kWarpRows, job);
    return job;
  }

  // A step: its tiles have arrived; its products are issued, in turn; meanwhile the step after next but three is asked
  // for; and at last all products have been waited for.
  __device__ __forceinline__ void enter() const { bulk_wait(memory_.full + at_.slot, at_.parity); }
  __device__ __forceinline__ void take_turn() {
    bulk_wait(memory_.turn + warpgroup(), turn_parity_);
    turn_parity_ ^= 1;
  }
  __device__ __forceinline__ void pass_turn() {
    if (lane_id() == 0) bulk_arrive(memory_.turn + 1 - warpgroup());
  }
  __device__ __forceinline__ void fetch_ahead() {
    if (warp_id() == 0) fetcher_.fetch();
  }
  __device__ __forceinline__ void leave() {
    __syncwarp();
    if (lane_id() == 0) bulk_arrive(memory_.done + at_.slot);
    at_.advance();
  }

  // Rows of V that no row of the item sees become zeros, as kv_stream.cuh explains: a box is copied whole. Each
  // warpgroup does it for itself, for the other may be elsewhere.
  __device__ __forceinline__ void blank_unseen(const Job& job, int tile) {
    const int token = tile * kTileTokens;
    if (token >= job.keys.begin && token + kTileTokens <= job.keys.end) return;
    constexpr int kRowVectors = kBoxRowBytes / 16, kBoxVectors = box_bytes(kDim) / 16;
    auto* const vectors = reinterpret_cast<uint4*>(values());
    constexpr int kThreadsHere = kWarpgroupWarps * kWarpSize;
    for (int i = static_cast<int>(threadIdx.x) % kThreadsHere; i < kTileSlabs * kBoxVectors; i += kThreadsHere) {
      const int key = token + i / kBoxVectors * kSlabTokens + i / kRowVectors % kBoxTokens;
      if (key < job.keys.begin || key >= job.keys.end) vectors[i] = make_uint4(0, 0, 0, 0);
    }
    fence_for_wgmma();
    __syncwarp();
    if (lane_id() == 0) bulk_arrive(memory_.together + warpgroup());
    bulk_wait(memory_.together + warpgroup(), together_parity_);
    together_parity_ ^= 1;
  }

 private:
  const RunArgs& args_;
  WarpgroupMemory<kDim>& memory_;
  StepFetcher<kDim> fetcher_;  // the first warp's
  StepPosition at_;
  int num_items_ = 0;
  uint32_t turn_parity_ = 0, together_parity_ = 0;
};

// scores = q k^T, ascending over head_dim. Runs on after the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_scores(const uint32_t (&q)[kDim / 16][4], const unsigned char* keys,
                                             TileScores& scores) {
  constexpr int kBlockBytes = kTileTokens * kSwizzleRowBytes, kBlockSlabs = kSwizzleColumns / 16;
  const uint32_t k = matrix_descriptor(keys, 16);  // distance of blocks: not looked at
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int at = i / kBlockSlabs * kBlockBytes + i % kBlockSlabs * 32;
    wgmma_k_major<T>(scores, q[i], advance(k, at), i > 0);
  }
  wgmma_commit();
}

// acc += weights v, ascending over the keys; what acc held before a chunk's first tile is not looked at. Runs on after
// the call.
template <typename T, int kDim>
__device__ __forceinline__ void start_values(const TileWeights& weights, const unsigned char* values, bool begins_chunk,
                                             float (&acc)[kDim / 8][4]) {
  const uint32_t v = matrix_descriptor(values, kBoxTokens * kBoxRowBytes);
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    wgmma_mn_major<T>(acc, weights[s], advance(v, s * box_bytes(kDim)), s > 0 || !begins_chunk);
  }
  wgmma_commit();
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
// i. Step n: what is left, acc += weights v of the last tile. Returns the next item's job, whose q is then in place of
// this one's.
template <typename T, int kDim>
__device__ __forceinline__ const Job* run_steps(const RunArgs& args, const Job& job, uint32_t (&q)[kDim / 16][4],
                                                Steps<kDim>& steps) {
  RowState<kDim, 2> chunk, running;
  chunk.clear();
  running.clear();
  TileScores scores;
  TileWeights weights;
  float decay[2];
  // Keys that all rows of the warp see. In registers: the scores wait for no load from shared memory.
  const KeyRange plain = {job.last.begin, job.first.end};
  const bool in_turns = job.tile_rows > kWarpgroupRows;

  steps.enter();
  if (in_turns) steps.take_turn();
  wgmma_fence();
  start_scores<T, kDim>(q, steps.keys(), scores);
  if (in_turns) steps.pass_turn();
  steps.fetch_ahead();
  wgmma_wait<0>();
  hold(scores);
  steps.leave();
  int tile = job.tiles.begin;
  hide_unseen(args, job, plain, tile, scores);
  weigh_scores<2>(scores, args.scale_log2, chunk.max, chunk.sum, decay);  // no acc yet to rescale
  pack_weights<T, 2>(scores, weights);

  const int last_tile = job.tiles.end - 1;
  while (tile < last_tile) {
    steps.enter();
    if (tile == job.tiles.begin) steps.blank_unseen(job, tile);
    if (in_turns) steps.take_turn();
    wgmma_fence();
    start_scores<T, kDim>(q, steps.keys(), scores);
    start_values<T, kDim>(weights, steps.values(), begins_chunk(job, tile), chunk.acc);
    if (in_turns) steps.pass_turn();
    steps.fetch_ahead();

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
    hide_unseen(args, job, plain, tile, scores);
    weigh_scores<2>(scores, args.scale_log2, max, sum, decay);
    compute_before_wait(fminf(sum[0], sum[1]));  // all of this runs under the product with v

    wgmma_wait<0>();
    hold(chunk.acc);
    hold(weights);
    steps.leave();
    if (begins) {
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

  steps.enter();
  steps.blank_unseen(job, tile);
  if (in_turns) steps.take_turn();
  wgmma_fence();
  start_values<T, kDim>(weights, steps.values(), begins_chunk(job, tile), chunk.acc);
  if (in_turns) steps.pass_turn();
  steps.fetch_ahead();
  const Job* const next = steps.next_job(false);
  if (next != nullptr) load_queries<T, kDim, 2>(args, *next, q);  // on its way until the first step
  wgmma_wait<0>();
  hold(chunk.acc);
  hold(weights);
  steps.leave();
  keep_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  end_item<T, kDim>(args, job, running);
  return next;
}

// The second warpgroup of an item that has no rows for it.
template <typename T, int kDim>
__device__ __forceinline__ const Job* skip_steps(const RunArgs& args, const Job& job, uint32_t (&q)[kDim / 16][4],
                                                 Steps<kDim>& steps) {
  for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
    steps.enter();
    steps.leave();
  }
  steps.enter();
  const Job* const next = steps.next_job(false);
  if (next != nullptr) load_queries<T, kDim, 2>(args, *next, q);
  steps.leave();
  return next;
}

// All CTA items that this CTA gets hold of.
template <typename T, int kDim>
__device__ __forceinline__ void run_warpgroups(const RunArgs& args, const KvMaps& maps, unsigned char* smem) {
  static_assert(sizeof(WarpgroupMemory<kDim>) <= kWarpgroupBytes<kDim>, "room in shared memory");
  static_assert(kWarps == 2 * kWarpgroupWarps, "two warpgroups");
  auto& memory = *reinterpret_cast<WarpgroupMemory<kDim>*>(smem);
  if (threadIdx.x == 0) memory.init_barriers();
  __syncthreads();
  Steps<kDim> steps(args, maps, memory);
  uint32_t q[kDim / 16][4];
  const Job* job = steps.next_job(true);
  if (job != nullptr) load_queries<T, kDim, 2>(args, *job, q);
  while (job != nullptr) {
    const bool has_rows = job->tile_rows > steps.warpgroup() * kWarpgroupRows;
    const Job* const next =
        has_rows ? run_steps<T, kDim>(args, *job, q, steps) : skip_steps<T, kDim>(args, *job, q, steps);
    if (job->item.split >= 0) {
      __syncthreads();
      if (threadIdx.x == 0) arrive(args, *job);
    }
    job = next;
  }
  __syncthreads();
  if (threadIdx.x == 0) memory.destroy_barriers();
  __syncthreads();
}

#endif

}  // namespace pe::cuda::attention
