// SPDX-License-Identifier: Apache-2.0
// The planner: turns query_start and seq_lens into lists of pieces, by the rules of schedule.cuh, in one block on the
// device.
//
// First the groups that share chunks (shared_prefix.cuh). Then four passes with a barrier between them: list the tiles;
// cut those that are too long; count the pieces of each length; write them, longest first. Inside one length the order
// is that of atomics, which no result depends on.
#pragma once
#include "cuda/attention/shared_prefix.cuh"
#include "cuda/common/launch.cuh"

namespace pe::cuda::attention {

struct PlanShared {
  SharedPrefixes prefixes;
  int64_t scan[kPlanThreads / kWarpSize];
  unsigned long long chunks[2];  // index 0: on warps, 1: on CTAs, here and below
  int longest;                   // of the tiles on warps, in chunks
  unsigned long long num_partial_rows;
  int num_splits, num_merge_rows, num_items[2];
  int buckets[2][kNumBuckets];
};

// Lists the tiles of all sequences; returns how many.
__device__ inline int list_tiles(const PlanArgs& args, PlanShared& shared) {
  const int tid = static_cast<int>(threadIdx.x);
  int64_t listed = 0;
  for (int base = 0; base < args.num_seqs; base += kPlanThreads) {
    const int seq = base + tid;
    const bool exists = seq < args.num_seqs;
    const int num_queries = exists ? args.query_start[seq + 1] - args.query_start[seq] : 0;
    const int seq_len = exists ? args.seq_lens[seq] : 0;
    const int num_tiles = tile_shape(num_queries * args.group).num_tiles;
    int64_t total = 0;
    const int64_t first = listed + block_exclusive_sum<kPlanThreads>(int64_t{num_tiles}, shared.scan, &total);
    FoundGroup* const group = num_tiles > 0 ? group_of(args, shared.prefixes, seq) : nullptr;
    const int num_shared_chunks = group == nullptr ? 0 : group->num_chunks;
    const int first_shared = group == nullptr ? 0 : list_shared_rows(args, *group, seq, num_queries * args.group);
    int64_t chunks = 0;
    for (int i = 0; i < num_tiles; ++i) {
      Tile tile = make_tile(seq, i, num_queries, seq_len, args.group, args.window, num_shared_chunks);
      if (group != nullptr) tile.shared = first_shared + tile.first_row;
      chunks += tile.chunk_end - tile.chunk_begin;
      if (!tile.on_cta) atomicMax(&shared.longest, tile.chunk_end - tile.chunk_begin);
      args.plan.tiles[first + i] = tile;
    }
    if (num_tiles > 0) atomicAdd(&shared.chunks[tile_shape(num_queries * args.group).on_cta], chunks);
    listed += total;
    __syncthreads();  // the scan's scratch is used again
  }
  const int index = static_cast<int>(threadIdx.x);
  if (index < shared.prefixes.num_groups) {
    const FoundGroup& group = shared.prefixes.groups[index];
    atomicAdd(&shared.chunks[1], static_cast<unsigned long long>(group.num_chunks) * num_shared_tiles(group.num_rows));
  }
  return static_cast<int>(listed);
}

// Decides whether a tile is cut, and books room for its partial results; where there is none left it stays whole.
__device__ inline void cut_tile(const PlanArgs& args, PlanShared& shared, Tile& tile, const Limit& limit) {
  const int num_chunks = tile.chunk_end - tile.chunk_begin;
  const int pieces = num_pieces(num_chunks, limit);
  if (pieces <= 1) return;
  const int states = num_partial_states(num_chunks, pieces);
  const auto need = static_cast<unsigned long long>(states) * tile.num_rows;
  const unsigned long long state = atomicAdd(&shared.num_partial_rows, need);
  if (state + need > static_cast<unsigned long long>(args.num_split_partial_rows)) return;
  tile.num_pieces = pieces;
  tile.split = atomicAdd(&shared.num_splits, 1);
  args.plan.splits[tile.split] =
      Split{tile.seq, tile.first_row, tile.num_rows, states, static_cast<int>(state), pieces, {0, 0}};
  const int first = atomicAdd(&shared.num_merge_rows, tile.num_rows);
  for (int row = 0; row < tile.num_rows; ++row) args.plan.merge_rows[first + row] = MergeRow{tile.split, row};
}

// Calls body(piece, begin, end) for each piece of the tile, chunks counted from the tile's first.
template <typename Body>
__device__ __forceinline__ void for_each_piece(const Tile& tile, Body body) {
  const int num_chunks = tile.chunk_end - tile.chunk_begin;
  for (int i = 0; i < tile.num_pieces; ++i) {
    body(i, piece_cut(num_chunks, tile.num_pieces, i), piece_cut(num_chunks, tile.num_pieces, i + 1));
  }
}

__device__ inline Item make_item(const PlanArgs& args, const Tile& tile, int piece, int begin, int end) {
  Item item{tile.seq,   tile.first_row, tile.chunk_begin + begin, tile.chunk_begin + end, tile.split, 0,
            piece == 0, tile.shared};
  if (tile.split < 0) return item;
  const int first_state = piece == 0 ? 0 : 1 + begin - piece_cut(tile.chunk_end - tile.chunk_begin, tile.num_pieces, 1);
  const Split& split = args.plan.splits[tile.split];
  item.state = split.state + first_state * split.num_rows;
  return item;
}

// Turns the bucket's counts into their first places: one warp per list, one lane per bucket.
__device__ inline void place_buckets(PlanShared& shared) {
  if (warp_id() >= 2) return;
  int& bucket = shared.buckets[warp_id()][lane_id()];
  const int count = bucket, through = warp_inclusive_sum(count);
  bucket = through - count;
  if (lane_id() == kWarpSize - 1) shared.num_items[warp_id()] = through;
}

// query_start[S+1], seq_lens[S], table[S,MB] -> the lists of args.h · grid 1 · block 1024
// traffic: 8 bytes per sequence and 100 per tile; some microseconds, once per step for all layers
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const PlanArgs args) {
  static_assert(kNumBuckets == kWarpSize && kPlanThreads >= 2 * kWarpSize, "a lane per bucket, a warp per list");
  __shared__ PlanShared shared;
  const int tid = static_cast<int>(threadIdx.x);
  release_successor();
  wait_for_predecessor();
  if (tid < 2) shared.chunks[tid] = 0;
  if (tid == 0) shared.num_partial_rows = shared.num_splits = shared.num_merge_rows = shared.longest = 0;
  if (tid < 2 * kNumBuckets) shared.buckets[tid / kNumBuckets][tid % kNumBuckets] = 0;
  find_groups(args, shared.prefixes);
  __syncthreads();

  const int num_seq_tiles = list_tiles(args, shared);
  __syncthreads();
  const PieceLimits limits =
      piece_limits(static_cast<int64_t>(shared.chunks[1]), static_cast<int64_t>(shared.chunks[0]), shared.longest,
                   args.num_kv_heads, args.num_ctas, args.by_cta, args.by_boxes);
  const int num_tiles = num_seq_tiles + shared.prefixes.num_tiles;
  list_shared_tiles(args, shared.prefixes,
                    shared_piece_limit(static_cast<int64_t>(shared.chunks[1]), args.num_kv_heads, args.num_ctas,
                                       decoders_per_cta(args.by_boxes), limits.cta.piece),
                    num_seq_tiles, &shared.num_splits);
  __syncthreads();
  for (int i = tid; i < num_tiles; i += kPlanThreads) {
    Tile& tile = args.plan.tiles[i];
    const Limit limit = tile.on_cta ? limits.cta : limits.warp;
    if (i < num_seq_tiles) cut_tile(args, shared, tile, limit);
    for_each_piece(tile, [&](int, int begin, int end) {
      atomicAdd(&shared.buckets[tile.on_cta][length_bucket(end - begin, limit.whole)], 1);
    });
  }
  __syncthreads();
  place_buckets(shared);
  __syncthreads();
  for (int i = tid; i < num_tiles; i += kPlanThreads) {
    const Tile tile = args.plan.tiles[i];
    const Limit limit = tile.on_cta ? limits.cta : limits.warp;
    Item* const items = tile.on_cta ? args.plan.cta_items : args.plan.warp_items;
    for_each_piece(tile, [&](int piece, int begin, int end) {
      const int place = atomicAdd(&shared.buckets[tile.on_cta][length_bucket(end - begin, limit.whole)], 1);
      items[place] = make_item(args, tile, piece, begin, end);
    });
  }
  for (uint32_t* const arrivals : args.plan.arrivals) {
    for (int i = tid; i < shared.num_splits * args.num_kv_heads; i += kPlanThreads) arrivals[i] = 0;
  }
  if (tid == 0) {
    Header header{};
    header.num_cta_items = shared.num_items[1];
    header.num_warp_items = shared.num_items[0];
    header.num_splits = shared.num_splits;
    header.num_merge_rows = shared.num_merge_rows;
    header.num_shared_rows = shared.prefixes.num_rows;
    header.decodes_by_cta = limits.decodes_by_cta;
    *args.plan.header = header;
  }
}

}  // namespace pe::cuda::attention
