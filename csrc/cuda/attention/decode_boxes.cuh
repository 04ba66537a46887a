// SPDX-License-Identifier: Apache-2.0
// paged attention, one warp's share where the GPU has a copy engine (sm_90): the work of decode.cuh, the same bits.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D in {64, 128}; H % HK == 0
// a warp alone, no CTA barrier · tile: 16 rows x 64 keys · smem: the warp's ring of boxes of 16 keys, 28 KiB deep
// traffic: chunks * 256 * D * 2 * sizeof(kv) read once; G flop/byte (G = H/HK, bf16) -> HBM-bound
// floor: S=64, len=2048, HK=8, D=128, bf16: 537 MB = 160 us at 3.35 TB/s
//
// A lone warp is bound by its own instructions, one after another, and the tail of every step is made of lone warps. So
// a box costs its warp one copy instruction, two boxes of keys are multiplied at a time (four accumulators hide the
// latency of the products), and the ring runs on over the borders of items.
#pragma once
#include "cuda/attention/combine.cuh"
#include "cuda/attention/kv_maps.h"

namespace pe::cuda::attention {

// One warp's way through the items: takes tickets, reads ahead into its ring, hands out jobs. Everything but the boxes
// and the jobs is equal in all lanes and lives in registers.
//
// The boxes of an item are numbered in the order of their use: of its i-th tile, K of slabs 0 .. 3 are boxes 8 i .. 8 i
// + 3 and V the next four. A box without a key that the item sees is not copied, but counted: its phase just ends.
template <int kDim>
class BoxRing {
 public:
  __device__ __forceinline__ BoxRing(const RunArgs& args, const KvMaps& maps, unsigned char* boxes, uint64_t* barriers,
                                     Job* jobs)
      : args_(args), maps_(maps), boxes_(boxes), arrived_(barriers), jobs_(jobs) {
    if (lane_id() == 0) {
      for (int i = 0; i < kSlots; ++i) bulk_barrier_init(arrived_ + i);
      bulk_barrier_fence();
    }
    __syncwarp();
    num_items_ = args.plan.header->num_warp_items * args.num_kv_heads;
    spread_ = args.spread && args.plan.header->num_cta_items == 0;
    if (spread_) {
      ticket_ = warp_id() * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    } else {
      ask();
    }
  }

  // The next item's job, its boxes already on their way; nullptr when there is none left.
  __device__ __forceinline__ const Job* next_job() {
    look_ahead();
    return taken_ == begun_ ? nullptr : jobs_ + taken_++ % kLiveBoxJobs;
  }
  // Once all boxes of an item are asked for, goes on to the next. To be called once a tile, when most of its boxes have
  // been used: whoever has much left to do should not hold another item.
  __device__ __forceinline__ void look_ahead() {
    if (requested_ == num_boxes_ && begun_ == taken_ && !ended_) begin_item();
  }

  // The next box in line, all of it arrived. Its slot comes free with release().
  __device__ __forceinline__ unsigned char* get() {
    bulk_wait(arrived_ + next_, parity_);
    unsigned char* const box = boxes_ + next_ * kBytes;
    if (++next_ == kSlots) {
      next_ = 0;
      parity_ ^= 1;
    }
    return box;
  }
  // The oldest `count` boxes have been read, by this lane.
  __device__ __forceinline__ void release(int count) {
    in_ring_ -= count;
    __syncwarp();  // by all lanes
    fill();
  }

  // After the last item: the first ticket that was not an item's, and those after it.
  __device__ __forceinline__ int last_ticket() const { return ticket_; }
  __device__ __forceinline__ int next_ticket() {
    ask();
    return ticket_ = __shfl_sync(kFullMask, ticket_, 0);
  }

 private:
  static constexpr int kBytes = box_bytes(kDim), kSlots = kBoxSlots<kDim>, kTileBoxes = 2 * kTileSlabs;
  static_assert(kSlots <= kWarpSize && kSlots <= kChunkTiles * kTileBoxes, "a lane asks for a box, of two chunks");

  __device__ __forceinline__ void fill() {
    const int count = min(kSlots - in_ring_, num_boxes_ - requested_);
    if (count == 0) return;
    request(count);
    if (requested_ == num_boxes_) ask();  // looked at when the next item begins
  }

  // Lane i asks for the i-th of the next `count` boxes.
  __device__ __forceinline__ void request(int count) {
    const int chunk = (first_tile_ + requested_ / kTileBoxes) / kChunkTiles;
    if (chunk != chunk_) {
      chunk_ = chunk;
      blocks_ = next_blocks_;
      next_blocks_ = load_blocks(chunk + 1);
    }
    const int box = requested_ + lane_id();
    const int slab = (first_tile_ + box / kTileBoxes) * kTileSlabs + box % kTileSlabs;
    const int here = __shfl_sync(kFullMask, blocks_, slab % kChunkSlabs);
    const int further = __shfl_sync(kFullMask, next_blocks_, slab % kChunkSlabs);
    if (lane_id() < count) {
      const int slot = free_ + lane_id() < kSlots ? free_ + lane_id() : free_ + lane_id() - kSlots;
      const bool held = slab >= slabs_begin_ && slab < slabs_end_;
      bulk_expect(arrived_ + slot, held ? kBytes : 0);
      if (held) {
        copy_box(boxes_ + slot * kBytes, box / kTileSlabs % 2 == 0 ? &maps_.k : &maps_.v,
                 slab * kSlabTokens & ((1 << args_.block_shift) - 1), kv_head_,
                 slab / kChunkSlabs == chunk_ ? here : further, arrived_ + slot);
      }
    }
    free_ = free_ + count < kSlots ? free_ + count : free_ + count - kSlots;
    in_ring_ += count;
    requested_ += count;
  }

  // Begins to read the item of the ticket that was asked for, if there is one.
  __device__ __forceinline__ void begin_item() {
    ticket_ = __shfl_sync(kFullMask, ticket_, 0);
    ended_ = ticket_ >= num_items_;
    if (ended_) return;
    Job& job = jobs_[begun_++ % kLiveBoxJobs];
    kv_head_ = ticket_ % args_.num_kv_heads;
    set_job(args_, args_.plan.warp_items[ticket_ / args_.num_kv_heads], kv_head_, kWarpRows, 0, &job);
    table_ = args_.block_tables + job.table_offset;
    slabs_begin_ = job.keys.begin / kSlabTokens;
    slabs_end_ = div_ceil(job.keys.end, kSlabTokens);
    first_tile_ = job.tiles.begin;
    num_boxes_ = (job.tiles.end - job.tiles.begin) * kTileBoxes;
    requested_ = 0;
    chunk_ = first_tile_ / kChunkTiles;
    blocks_ = load_blocks(chunk_);
    next_blocks_ = load_blocks(chunk_ + 1);
    fill();
  }

  __device__ __forceinline__ void ask() {
    if (lane_id() == 0) {
      ticket_ = static_cast<int>(atomicAdd(&args_.plan.header->next_warp, 1u)) +
                (spread_ ? static_cast<int>(gridDim.x) * kWarps : 0);
    }
  }

  // Lane l holds the physical block of slab l of a chunk.
  __device__ __forceinline__ int load_blocks(int chunk) const {
    const int slab = chunk * kChunkSlabs + lane_id();
    if (lane_id() >= kChunkSlabs || slab < slabs_begin_ || slab >= slabs_end_) return 0;
    return __ldg(table_ + (slab * kSlabTokens >> args_.block_shift));
  }

  const RunArgs& args_;
  const KvMaps& maps_;
  unsigned char* const boxes_;
  uint64_t* const arrived_;
  Job* const jobs_;
  int num_items_;
  bool spread_;
  // the item being read
  const int32_t* table_ = nullptr;
  int kv_head_ = 0, slabs_begin_ = 0, slabs_end_ = 0, first_tile_ = 0;
  int num_boxes_ = 0, requested_ = 0;
  int chunk_ = 0, blocks_ = 0, next_blocks_ = 0;
  // the ring: filled next, computed on next, full slots
  int free_ = 0, next_ = 0, in_ring_ = 0;
  uint32_t parity_ = 0;
  int begun_ = 0, taken_ = 0;  // items read, items given out
  int ticket_ = 0;             // lane 0 alone has it until it is looked at
  bool ended_ = false;
};

// Where this lane's share of an ldmatrix lies in a box: of the first 16 columns, and how it goes on.
struct BoxLane {
  int place;
  // Keys: lanes 0-7 give rows 0-7 of columns 0-7, then columns 8-15, then rows 8-15 likewise.
  static __device__ __forceinline__ BoxLane of_keys() {
    return at(lane_id() / 16 * 8 + lane_id() % 8, lane_id() / 8 % 2);
  }
  // Values, transposed on the way: lanes 8-15 give rows 8-15 of columns 0-7, lanes 16-31 columns 8-15.
  static __device__ __forceinline__ BoxLane of_values() {
    return at(lane_id() / 8 % 2 * 8 + lane_id() % 8, lane_id() / 16);
  }
  // 16 columns further on: two vectors, which the swizzle scatters inside a block of 64 columns.
  __device__ __forceinline__ int step(int i) const {
    constexpr int kSteps = kBoxColumns / 16;
    return (place ^ i % kSteps * 32) + i / kSteps * kBoxTokens * kBoxRowBytes;
  }

 private:
  static __device__ __forceinline__ BoxLane at(int row, int vector) {
    return {row * kBoxRowBytes + (vector ^ row % 8) * 16};
  }
};

// scores of two boxes += q k^T; per score the products ascend over head_dim (multiply_keys of softmax.cuh).
template <typename T, int kDim>
__device__ __forceinline__ void multiply_key_boxes(const unsigned char* left, const unsigned char* right,
                                                   const BoxLane& lane, const uint32_t (&q)[kDim / 16][4],
                                                   float (*scores)[4]) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[4], b[4];
    ldmatrix_x4(a, left + lane.step(k));
    ldmatrix_x4(b, right + lane.step(k));
    mma_m16n8k16<T>(scores[0], q[k], a[0], a[1]);
    mma_m16n8k16<T>(scores[1], q[k], a[2], a[3]);
    mma_m16n8k16<T>(scores[2], q[k], b[0], b[1]);
    mma_m16n8k16<T>(scores[3], q[k], b[2], b[3]);
  }
}

// acc += weights of one slab x all columns of its values (multiply_values of softmax.cuh).
template <typename T, int kDim>
__device__ __forceinline__ void multiply_value_box(const unsigned char* box, const BoxLane& lane,
                                                   const uint32_t (&weights)[4], float (&acc)[kDim / 8][4]) {
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, box + lane.step(n));
    mma_m16n8k16<T>(acc[2 * n], weights, b[0], b[1]);
    mma_m16n8k16<T>(acc[2 * n + 1], weights, b[2], b[3]);
  }
}

// A box is copied whole. Rows of values that no row of the item sees become zeros, as kv_stream.cuh explains.
template <int kDim>
__device__ __forceinline__ void blank_unseen(const Job& job, int token, unsigned char* box) {
  if (token >= job.keys.begin && token + kSlabTokens <= job.keys.end) return;
  constexpr int kRowVectors = kBoxRowBytes / 16, kVectors = box_bytes(kDim) / 16;
  for (int i = lane_id(); i < kVectors; i += kWarpSize) {
    const int key = token + i / kRowVectors % kBoxTokens;
    if (key < job.keys.begin || key >= job.keys.end) reinterpret_cast<uint4*>(box)[i] = make_uint4(0, 0, 0, 0);
  }
  bulk_fence_before_reuse();
  __syncwarp();
}

// What was left in a box without keys gets scores too; they are hidden with all others that no row sees.
template <typename T, int kDim>
__device__ __forceinline__ void score_tile(BoxRing<kDim>& ring, const uint32_t (&q)[kDim / 16][4], TileScores& scores) {
  const BoxLane lane = BoxLane::of_keys();
#pragma unroll
  for (int s = 0; s < kTileSlabs; s += 2) {
    const unsigned char* const left = ring.get();
    const unsigned char* const right = ring.get();
    multiply_key_boxes<T, kDim>(left, right, lane, q, scores + 2 * s);
    ring.release(2);
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void absorb_values(BoxRing<kDim>& ring, const Job& job, int token,
                                              const TileWeights& weights, float (&acc)[kDim / 8][4]) {
  const BoxLane lane = BoxLane::of_values();
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    unsigned char* const box = ring.get();
    const int first = token + s * kSlabTokens;
    if (holds_keys(job, first, kSlabTokens)) {
      blank_unseen<kDim>(job, first, box);
      multiply_value_box<T, kDim>(box, lane, weights[s], acc);
    }
    if (s % 2 == 1) ring.release(2);
  }
}

template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_box_item(const RunArgs& args, const Job& job, BoxRing<kDim>& ring) {
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim, kHalves>(args, job, q);
  RowState<kDim, kHalves> chunk, running;
  chunk.clear();
  running.clear();
  for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    TileScores scores = {};
    score_tile<T, kDim>(ring, q, scores);
    ring.look_ahead();
    if (!sees_all(job, token, kTileTokens)) hide_unseen<kHalves>(args, job, token, scores);
    TileWeights weights;
    absorb_scores<T>(scores, args.scale_log2, chunk, weights);
    absorb_values<T, kDim>(ring, job, token, weights, chunk.acc);
    if (ends_chunk(job, tile)) end_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  }
  end_item<T, kDim>(args, job, running);
}

// A warp's items, then the rows that it merges.
template <typename T, int kDim>
__device__ __forceinline__ void run_box_tickets(const RunArgs& args, const KvMaps& maps, unsigned char* boxes,
                                                uint64_t* barriers, Job* jobs) {
  const int num_items = args.plan.header->num_warp_items * args.num_kv_heads;
  const int num_merges = args.plan.header->num_merge_rows * args.num_kv_heads;
  if (num_items + num_merges == 0) return;
  BoxRing<kDim> ring(args, maps, boxes, barriers, jobs);
  while (const Job* const job = ring.next_job()) {
    if (job->num_rows <= kHalfRows) {
      run_box_item<T, kDim, 1>(args, *job, ring);
    } else {
      run_box_item<T, kDim, 2>(args, *job, ring);
    }
    __syncwarp();
    if (job->item.split >= 0 && lane_id() == 0) arrive(args, *job);
  }
  for (int ticket = ring.last_ticket(); ticket < num_items + num_merges; ticket = ring.next_ticket()) {
    const MergeRow row = args.plan.merge_rows[(ticket - num_items) / args.num_kv_heads];
    run_merge<T, kDim>(args, row, ticket % args.num_kv_heads);
  }
}

}  // namespace pe::cuda::attention
