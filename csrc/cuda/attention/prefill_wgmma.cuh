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
// The copy engine fetches K and V (bulk_copy.cuh), steps ahead and on over the borders of items. One warp takes the
// tickets and plans what steps ask for; all warps ask for a box or two of each while they wait for their scores.
#pragma once
#include "cuda/attention/kv_maps.h"
#include "cuda/attention/prefill.cuh"
#include "cuda/common/wgmma.cuh"

namespace pe::cuda::attention {

#if defined(PE_WGMMA)

// Step i of an item multiplies K of tile i and V of tile i - 1 (see run_steps). The last step to be asked for takes the
// place of step i - 2, which the warpgroup behind has just left.
constexpr int kStepsAhead = kSteps - 2;
// Steps are planned two further ahead: at step i all warps have left step i - 2, so they see what was planned in it.
constexpr int kStepsPlannedAhead = kStepsAhead + 2, kPlannedSteps = 8;
static_assert(kPlannedSteps >= kStepsPlannedAhead + 2, "a plan is not written over before all have read it");
constexpr int kWarpgroupRows = kWarpgroupWarps * kWarpRows;

// Steps are numbered from the first item's on. Where a step is in the ring:
__device__ __forceinline__ int slot_of(int step) { return step % kSteps; }
__device__ __forceinline__ uint32_t parity_of(int step) { return static_cast<uint32_t>(step / kSteps) & 1; }

// What a step asks for: K of a tile and V of the tile before, where the item has them.
struct StepPlan {
  int tile, kv_head;                                     // kv_head -1: no step any more
  int key_blocks[kTileSlabs], value_blocks[kTileSlabs];  // physical blocks; -1: holds no key of the item
};

// Where the planning warp is, as each of its lanes keeps it. In shared memory: it is looked at once a step by one warp,
// and all eight would have to keep registers for it.
struct PlannerState {
  int ticket;          // in lane 0: of the next item
  int tile, end_tile;  // of K in the step planned last; of the item
  int num_items, num_steps;
  int blocks, next_blocks;  // physical blocks of the lane's slab of a chunk, and of the next chunk
  int key_block;            // of lane % 4 in the step planned last
};

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
  PlannerState planner[kWarpSize];
  StepPlan plans[kPlannedSteps];
  uint64_t full[kSteps];  // barriers: the step's tiles have arrived
  uint64_t done[kSteps];  // all warps have left the step
  uint64_t turn[2];       // of each warpgroup: it may issue its products
  uint64_t together[2];   // of each warpgroup: for its own warps to meet at

  __device__ __forceinline__ void init_barriers() {
    for (int i = 0; i < kSteps; ++i) {
      bulk_barrier_init(full + i, kWarps);
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

// ---- the warp that plans --------------------------------------------------------------------------------------------

template <int kDim>
class StepPlanner {
 public:
  __device__ __forceinline__ StepPlanner(const RunArgs& args, WarpgroupMemory<kDim>& memory)
      : args_(args), memory_(memory) {}

  __device__ __forceinline__ void start() const {
    PlannerState state{};
    if (lane_id() == 0) state.ticket = take_cta_ticket(args_, true);
    memory_.planner[lane_id()] = state;
    for (int i = 0; i < kStepsPlannedAhead; ++i) plan();
  }

  // Plans the next step in line, of the item being read or of the next one. All lanes of the warp call.
  __device__ __forceinline__ void plan() const {
    const int lane = not_hoisted(lane_id());
    PlannerState& state = memory_.planner[lane];
    StepPlan& plan = memory_.plans[state.num_steps++ % kPlannedSteps];
    if (state.tile == state.end_tile && !begin_item(state)) {
      if (lane == 0) plan.kv_head = -1;
      return;
    }
    const Job& job = memory_.items[(state.num_items - 1) % kLiveItems];
    const int tile = ++state.tile;
    if (tile % kChunkTiles == 0 && tile != job.tiles.begin) {
      state.blocks = state.next_blocks;
      state.next_blocks = load_blocks(job, tile / kChunkTiles + 1);
    }
    const int slab = tile * kTileSlabs + lane % kTileSlabs;
    const int block = __shfl_sync(kFullMask, state.blocks, slab % kChunkSlabs);
    const bool held = tile < job.tiles.end && holds_keys(job, slab * kSlabTokens, kSlabTokens);
    if (lane < kTileSlabs) {
      plan.value_blocks[lane] = tile > job.tiles.begin ? state.key_block : -1;
      plan.key_blocks[lane] = state.key_block = held ? block : -1;
    }
    if (lane == 0) {
      plan.tile = tile;
      plan.kv_head = job.kv_head;
    }
  }

 private:
  // An item's first step has K of its first tile, its last one V of its last tile: `tile` runs from the tile before the
  // first to the one behind the last. Returns false where there is no item left.
  __device__ __forceinline__ bool begin_item(PlannerState& state) const {
    const int ticket = __shfl_sync(kFullMask, state.ticket, 0);
    Job& job = memory_.items[state.num_items % kLiveItems];
    if (ticket >= args_.plan.header->num_cta_items * args_.num_kv_heads) {
      if (lane_id() == 0) job.kv_head = -1;
      return false;
    }
    if (lane_id() == 0) state.ticket = take_cta_ticket(args_, false);
    set_cta_job(args_, args_.plan.cta_items[ticket / args_.num_kv_heads], ticket % args_.num_kv_heads, 0, &job);
    ++state.num_items;
    state.tile = job.tiles.begin - 1;
    state.end_tile = job.tiles.end;
    state.blocks = load_blocks(job, job.tiles.begin / kChunkTiles);
    state.next_blocks = load_blocks(job, job.tiles.begin / kChunkTiles + 1);
    return true;
  }

  // Lane l holds the physical block of slab l of a chunk.
  __device__ __forceinline__ int load_blocks(const Job& job, int chunk) const {
    const int token = chunk * kChunkTokens + lane_id() * kSlabTokens;
    if (lane_id() >= kChunkSlabs || !holds_keys(job, token, kSlabTokens)) return 0;
    return __ldg(args_.block_tables + job.table_offset + (token >> args_.block_shift));
  }

  const RunArgs& args_;
  WarpgroupMemory<kDim>& memory_;
};

// ---- all warps ------------------------------------------------------------------------------------------------------

// A warp's way through the steps of all items.
template <int kDim>
class Steps {
 public:
  __device__ __forceinline__ Steps(const RunArgs& args, const KvMaps& maps, WarpgroupMemory<kDim>& memory)
      : args_(args), maps_(maps), memory_(memory), planner_(args, memory) {
    if (warp_id() == 0) planner_.start();
    __syncthreads();
    for (int i = 0; i < kStepsAhead; ++i) request(i);
    if (warpgroup() == 1) pass_turn();
  }

  static __device__ __forceinline__ int warpgroup() { return warp_id() / kWarpgroupWarps; }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_.steps[slot_of(step_)].keys; }
  __device__ __forceinline__ unsigned char* values() const { return memory_.steps[slot_of(step_)].values; }

  // The job of the next item; nullptr after the last. Called under the last step of the item before.
  __device__ __forceinline__ const Job* next_job(bool first) {
    const int step = first ? 0 : step_ + 1;
    bulk_wait(memory_.full + slot_of(step), parity_of(step));
    const uint32_t number = counts_ / kOneItem;
    const Job& item = memory_.items[number % kLiveItems];
    if (item.kv_head < 0) return nullptr;
    Job* const job = &memory_.jobs[number % 2][warp_id()];
    counts_ += kOneItem;
    narrow_job(args_, item, warp_id() * kWarpRows, job);
    return job;
  }

  // A step: its tiles have arrived; its products are issued, in turn; meanwhile a later one is asked for; and at last
  // all products have been waited for.
  __device__ __forceinline__ void enter() const { bulk_wait(memory_.full + slot_of(step_), parity_of(step_)); }
  __device__ __forceinline__ void take_turn() {
    bulk_wait(memory_.turn + warpgroup(), counts_ & kTurn);
    counts_ ^= kTurn;
  }
  __device__ __forceinline__ void pass_turn() {
    if (lane_id() == 0) bulk_arrive(memory_.turn + 1 - warpgroup());
  }
  // All warps ask for a share of a later step, in the place of the last but one.
  __device__ __forceinline__ void request_ahead() {
    const int step = step_ + kStepsAhead;
    bulk_wait(memory_.done + slot_of(step), parity_of(step) ^ 1);
    request(step);
    if (warp_id() == 0) planner_.plan();
  }
  __device__ __forceinline__ void leave() {
    __syncwarp();
    if (lane_id() == 0) bulk_arrive(memory_.done + slot_of(step_));
    ++step_;
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
    bulk_wait(memory_.together + warpgroup(), counts_ / kTogether & 1);
    counts_ ^= kTogether;
  }

 private:
  static constexpr int kColumnBoxBytes = kBoxTokens * kBoxRowBytes;

  // Warp i asks for slab i % 4 of the i / 4-th 64 columns of K, the second warpgroup for V besides.
  __device__ __forceinline__ void request(int number) const {
    const StepPlan& plan = memory_.plans[number % kPlannedSteps];
    const int slot = slot_of(number), warp = not_hoisted(warp_id());
    if (lane_id() != 0) return;
    const int slab = warp % kTileSlabs, columns = warp / kTileSlabs;
    const bool ended = plan.kv_head < 0;
    const int key_block = ended || columns * kBoxColumns >= kDim ? -1 : plan.key_blocks[slab];
    const int value_block = ended || warp < kWarpgroupWarps ? -1 : plan.value_blocks[slab];
    uint64_t* const full = memory_.full + slot;
    bulk_expect(full, (key_block >= 0 ? kColumnBoxBytes : 0) + (value_block >= 0 ? box_bytes(kDim) : 0));
    auto& step = memory_.steps[slot];
    const int token = plan.tile * kTileTokens + slab * kSlabTokens, in_block = (1 << args_.block_shift) - 1;
    if (key_block >= 0) {
      unsigned char* const to = step.keys + columns * kTileTokens * kBoxRowBytes + slab * kColumnBoxBytes;
      copy_columns(to, &maps_.key_columns, token & in_block, columns, plan.kv_head, key_block, full);
    }
    if (value_block >= 0) {
      copy_box(step.values + slab * box_bytes(kDim), &maps_.v, (token - kTileTokens) & in_block, plan.kv_head,
               value_block, full);
    }
  }

  const RunArgs& args_;
  const KvMaps& maps_;
  WarpgroupMemory<kDim>& memory_;
  StepPlanner<kDim> planner_;  // the first warp's
  int step_ = 0;
  // In one register: the parities of the two barriers of this warpgroup, and how many items it has begun.
  static constexpr uint32_t kTurn = 1, kTogether = 2, kOneItem = 4;
  uint32_t counts_ = 0;
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
  steps.request_ahead();
  wgmma_wait<0>();
  hold(scores);
  steps.leave();
  int tile = job.tiles.begin;
  hide_unseen(args, job, plain, tile, scores);
  weigh_scores<2>(scores, args.scale_log2, chunk.max, chunk.sum, decay);  // no acc yet to rescale
  pack_weights<T, 2>(scores, weights);

  const int last_tile = job.tiles.end - 1;
  if (tile < last_tile && tile * kTileTokens < job.keys.begin) {
    steps.enter();
    steps.blank_unseen(job, tile);
  }
  while (tile < last_tile) {
    steps.enter();
    if (in_turns) steps.take_turn();
    wgmma_fence();
    start_scores<T, kDim>(q, steps.keys(), scores);
    start_values<T, kDim>(weights, steps.values(), begins_chunk(job, tile), chunk.acc);
    if (in_turns) steps.pass_turn();
    steps.request_ahead();

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
  steps.request_ahead();
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
    steps.request_ahead();
    steps.leave();
  }
  steps.enter();
  steps.request_ahead();
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
