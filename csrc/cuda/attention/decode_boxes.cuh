// SPDX-License-Identifier: Apache-2.0
// paged attention where the GPU has a copy engine (sm_90): the work of decode.cuh, by pairs of warps; the same bits.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D in {64, 128}; H % HK == 0
// 4 pairs, no CTA barrier: one warp fetches, one computes 16 rows x 64 keys at a time
// smem: a pair's ring of K tiles and V tiles, 48 KiB deep
// traffic: chunks * 256 * D * 2 * sizeof(kv) read once; G flop/byte (G = H/HK, bf16) -> HBM-bound
// floor: S=64, len=2048, HK=8, D=128, bf16: 537 MB = 160 us at 3.35 TB/s
//
// A warp that works alone waits for each of its instructions: where a warp fetched for itself, asking for copies took
// longer than the arithmetic, whatever the depth of its ring, and every step ends with warps alone. So the fetching
// warp takes tickets, prepares jobs and asks for boxes (16 keys of one head, by one instruction), and the ring runs on
// over the borders of items. What it moves are rows of kWords 16-bit words; what these hold, the other one knows.
#pragma once
#include "cuda/attention/combine.cuh"
#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/kv_maps.h"
#include "cuda/common/launch.cuh"

namespace pe::cuda::attention {

// A pair's ring: groups of the four boxes of a tile, first of its K, then of its V.
template <int kWords>
struct PairMemory {
  unsigned char* groups;
  Job* jobs;               // kLiveBoxJobs: those that the ring may reach over
  uint64_t *full, *empty;  // barriers of each group

  static constexpr int kBoxBytes = box_bytes(kWords), kGroupBytes = kTileSlabs * kBoxBytes;

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < kBoxGroups<kWords>; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 1);
    }
    mbarrier_init_fence();
  }
};

// ---- the fetching warp ----------------------------------------------------------------------------------------------

template <int kWords>
class BoxFetcher {
 public:
  __device__ __forceinline__ BoxFetcher(const RunArgs& args, const KvMaps& maps, const PairMemory<kWords>& memory)
      : args_(args), maps_(maps), memory_(memory) {}

  // Begins to read an item when the ring has room behind the last one: whoever has much left to do should not hold
  // another.
  __device__ __forceinline__ void fetch(const Item& item, int kv_head) {
    Job& job = next_job();
    set_job(args_, item, kv_head, kWarpRows, 0, &job);
    job_ = &job;
    blocks_ = load_blocks(job.tiles.begin / kChunkTiles);
    next_blocks_ = load_blocks(job.tiles.begin / kChunkTiles + 1);
    wait_for_predecessor();  // K and V of this step
    for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
      if (tile % kChunkTiles == 0 && tile != job.tiles.begin) {
        blocks_ = next_blocks_;
        next_blocks_ = load_blocks(tile / kChunkTiles + 1);
      }
      fetch_group(tile, &maps_.k);
      fetch_group(tile, &maps_.v);
    }
  }

  // Tells the computing warp that there is no item left.
  __device__ __forceinline__ void end() {
    Job& job = next_job();
    mbarrier_wait(memory_.empty + at_.slot, at_.parity ^ 1);
    if (lane_id() == 0) {
      job.kv_head = -1;
      mbarrier_expect(memory_.full + at_.slot, 0);
    }
  }

 private:
  __device__ __forceinline__ Job& next_job() { return memory_.jobs[num_jobs_++ % kLiveBoxJobs<kWords>]; }

  // Lane i asks for slab i of the tile. One that holds no key of the item is left out.
  __device__ __forceinline__ void fetch_group(int tile, const BoxMap* map) {
    const int slab = tile * kTileSlabs + lane_id() % kTileSlabs;
    const bool held = lane_id() < kTileSlabs && holds_keys(*job_, slab * kSlabTokens, kSlabTokens);
    const int block = __shfl_sync(kFullMask, blocks_, slab % kChunkSlabs);
    const unsigned boxes = __ballot_sync(kFullMask, held);
    mbarrier_wait(memory_.empty + at_.slot, at_.parity ^ 1);
    uint64_t* const full = memory_.full + at_.slot;
    if (lane_id() == 0) mbarrier_expect(full, __popc(boxes) * PairMemory<kWords>::kBoxBytes);
    __syncwarp();
    if (held) {
      unsigned char* const to =
          memory_.groups + at_.slot * PairMemory<kWords>::kGroupBytes + lane_id() * PairMemory<kWords>::kBoxBytes;
      copy_box(to, map, slab * kSlabTokens & ((1 << args_.block_shift) - 1), job_->kv_head, block, full);
    }
    at_.advance();
  }

  // Lane l holds the physical block of slab l of a chunk.
  __device__ __forceinline__ int load_blocks(int chunk) const {
    const int token = chunk * kChunkTokens + lane_id() * kSlabTokens;
    if (lane_id() >= kChunkSlabs || !holds_keys(*job_, token, kSlabTokens)) return 0;
    return __ldg(args_.block_tables + job_->table_offset + (token >> args_.block_shift));
  }

  const RunArgs& args_;
  const KvMaps& maps_;
  const PairMemory<kWords>& memory_;
  const Job* job_ = nullptr;
  int blocks_ = 0, next_blocks_ = 0, num_jobs_ = 0;
  RingPosition<kBoxGroups<kWords>> at_;
};

// Tickets of items, longest first, then of rows to merge. The first ones go round the SMs where all CTAs run at once.
__device__ __forceinline__ int take_pair_ticket(const RunArgs& args, int pair, bool first) {
  const bool spread = args.spread && args.plan.header->num_cta_items == 0;
  const int num_ctas = static_cast<int>(gridDim.x);
  if (spread && first) return pair * num_ctas + static_cast<int>(blockIdx.x);
  return take_ticket(&tickets(args).next_warp) + (spread ? num_ctas * kBoxPairs : 0);
}

template <typename T, int kDim, int kWords>
__device__ __forceinline__ void run_fetching_warp(const RunArgs& args, const KvMaps& maps,
                                                  const PairMemory<kWords>& memory, int pair) {
  const int num_items = args.plan.header->num_warp_items * args.num_kv_heads;
  const int num_merges = args.plan.header->num_merge_rows * args.num_kv_heads;
  BoxFetcher<kWords> fetcher(args, maps, memory);
  int ticket = take_pair_ticket(args, pair, true);
  for (; ticket < num_items; ticket = take_pair_ticket(args, pair, false))
    fetcher.fetch(args.plan.warp_items[ticket / args.num_kv_heads], ticket % args.num_kv_heads);
  fetcher.end();
  for (; ticket < num_items + num_merges; ticket = take_pair_ticket(args, pair, false)) {
    const MergeRow row = args.plan.merge_rows[(ticket - num_items) / args.num_kv_heads];
    run_merge<T, kDim>(args, row, ticket % args.num_kv_heads);
  }
}

// ---- the computing warp ---------------------------------------------------------------------------------------------

template <int kWords>
class BoxReader {
 public:
  __device__ __forceinline__ explicit BoxReader(const PairMemory<kWords>& memory) : memory_(memory) {}

  // The next item's job; nullptr after the last.
  __device__ __forceinline__ const Job* next_job() {
    mbarrier_wait(memory_.full + at_.slot, at_.parity);
    const Job* const job = memory_.jobs + num_jobs_++ % kLiveBoxJobs<kWords>;
    return job->kv_head < 0 ? nullptr : job;
  }
  // The next group in line, all of it arrived, until it is released.
  __device__ __forceinline__ unsigned char* get() const {
    mbarrier_wait(memory_.full + at_.slot, at_.parity);
    return memory_.groups + at_.slot * PairMemory<kWords>::kGroupBytes;
  }
  __device__ __forceinline__ void release() {
    __syncwarp();  // read by all lanes
    if (lane_id() == 0) mbarrier_arrive(memory_.empty + at_.slot);
    at_.advance();
  }

 private:
  const PairMemory<kWords>& memory_;
  int num_jobs_ = 0;
  RingPosition<kBoxGroups<kWords>> at_;
};

// Where this lane's share of an ldmatrix lies in a box: of the first 16 columns, and how it goes on.
template <int kWords>
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
  // 16 columns further on: two vectors, which the swizzle scatters inside a block of columns.
  __device__ __forceinline__ int step(int i) const {
    constexpr int kSteps = kRowBytes / 32;
    return (place ^ i % kSteps * 32) + i / kSteps * kBoxTokens * kRowBytes;
  }

 private:
  static constexpr int kRowBytes = box_row_bytes(kWords);
  static __device__ __forceinline__ BoxLane at(int row, int vector) {
    return {row * kRowBytes + place_in_box(kRowBytes, row, vector) * 16};
  }
};

// scores of a tile += q k^T; per score the products ascend over head_dim (multiply_keys of kv_format.cuh). What was
// left in a box without keys gets scores too; they are hidden with all others that no row sees.
template <typename Format, int kDim>
__device__ __forceinline__ void score_tile(const unsigned char* keys, const uint32_t (&q)[kDim / 16][4],
                                           TileScores& scores) {
  const auto lane = BoxLane<Format::kWords>::of_keys();
#pragma unroll
  for (int i = 0; i < Format::kWords / 16; ++i) {
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) {
      uint32_t b[4];
      ldmatrix_x4(b, keys + s * box_bytes(Format::kWords) + lane.step(i));
      Format::multiply_key_vectors(b, q, i, scores + 2 * s);
    }
  }
}

// acc += weights of one slab x all columns of its values (multiply_values of kv_format.cuh).
template <typename Format, int kDim>
__device__ __forceinline__ void multiply_value_box(const unsigned char* box, const BoxLane<Format::kWords>& lane,
                                                   const uint32_t (&weights)[4], float (&acc)[kDim / 8][4]) {
#pragma unroll
  for (int i = 0; i < Format::kWords / 16; ++i) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, box + lane.step(i));
    Format::multiply_value_vectors(b, weights, i, acc);
  }
}

// A box is copied whole. Rows of values that no row of the item sees become zeros, as kv_stream.cuh explains.
template <int kWords>
__device__ __forceinline__ void blank_unseen(const Job& job, int token, unsigned char* values) {
  constexpr int kRowVectors = box_row_bytes(kWords) / 16, kBoxVectors = box_bytes(kWords) / 16;
  for (int i = lane_id(); i < kTileSlabs * kBoxVectors; i += kWarpSize) {
    const int key = token + i / kBoxVectors * kSlabTokens + i / kRowVectors % kBoxTokens;
    if (key < job.keys.begin || key >= job.keys.end) reinterpret_cast<uint4*>(values)[i] = make_uint4(0, 0, 0, 0);
  }
  bulk_fence_before_reuse();
  __syncwarp();
}

template <typename Format, int kDim>
__device__ __forceinline__ void absorb_values(const Job& job, int token, unsigned char* values,
                                              const TileWeights& weights, float (&acc)[kDim / 8][4]) {
  constexpr int kBoxBytes = box_bytes(Format::kWords);
  const auto lane = BoxLane<Format::kWords>::of_values();
  if (token >= job.keys.begin && token + kTileTokens <= job.keys.end) {
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s)
      multiply_value_box<Format, kDim>(values + s * kBoxBytes, lane, weights[s], acc);
    return;
  }
  blank_unseen<Format::kWords>(job, token, values);
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    if (holds_keys(job, token + s * kSlabTokens, kSlabTokens))
      multiply_value_box<Format, kDim>(values + s * kBoxBytes, lane, weights[s], acc);
  }
}

template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_box_item(const RunArgs& args, const Job& job,
                                             BoxReader<KvFormat<T, kDim>::kWords>& reader) {
  using Format = KvFormat<T, kDim>;
  using Element = typename Format::Element;
  uint32_t q[kDim / 16][4];
  load_queries<Element, kDim, kHalves, Format::kQuads>(args, job, q);
  const float key_scale = Format::key_scale(args, job);
  RowState<kDim, kHalves> chunk, running;
  chunk.clear();
  begin_running<kDim>(args, job, running);
  for (int tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
    const int token = tile * kTileTokens;
    TileScores scores = {};
    score_tile<Format, kDim>(reader.get(), q, scores);
    reader.release();
    Format::scale_scores(args, key_scale, scores);
    if (!sees_all(job, token, kTileTokens)) hide_unseen<kHalves>(args, job, token, scores);
    TileWeights weights;
    absorb_scores<Element>(scores, args.scale_log2, chunk, weights);
    absorb_values<Format, kDim>(job, token, reader.get(), weights, chunk.acc);
    reader.release();
    if (!ends_chunk(job, tile)) continue;
    Format::template order_columns<kHalves>(chunk.acc);
    Format::scale_values(args, job, chunk.acc);
    end_chunk<kDim>(args, job, tile / kChunkTiles, chunk, running);
  }
  end_item<Element, kDim>(args, job, running);
}

template <typename T, int kDim, int kWords>
__device__ __forceinline__ void run_computing_warp(const RunArgs& args, const PairMemory<kWords>& memory) {
  BoxReader<kWords> reader(memory);
  wait_for_predecessor();  // q
  while (const Job* const job = reader.next_job()) {
    if (job->num_rows <= kHalfRows) {
      run_box_item<T, kDim, 1>(args, *job, reader);
    } else {
      run_box_item<T, kDim, 2>(args, *job, reader);
    }
    __syncwarp();
    if (job->item.split >= 0 && lane_id() == 0) arrive(args, *job);
  }
}

// All warps of the CTA: the first four compute, the others fetch for them, so that each scheduler has one of both.
template <typename T, int kDim>
__device__ __forceinline__ void run_pairs(const RunArgs& args, const KvMaps& maps,
                                          const PairMemory<KvFormat<T, kDim>::kWords>& memory) {
  static_assert(2 * kBoxPairs == kWarps, "pairs of warps");
  if (args.plan.header->num_warp_items + args.plan.header->num_merge_rows == 0) return;
  const bool fetches = warp_id() >= kBoxPairs;
  if (fetches && lane_id() == 0) {
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    memory.init_barriers();
  }
  sync_workers();
  if (fetches) {
    run_fetching_warp<typename KvFormat<T, kDim>::Element, kDim>(args, maps, memory, warp_id() % kBoxPairs);
  } else {
    run_computing_warp<T, kDim>(args, memory);
  }
}

}  // namespace pe::cuda::attention
