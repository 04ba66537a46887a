// SPDX-License-Identifier: Apache-2.0
// A warp's job: 16 packed query rows of one sequence and kv head, and the keys they are multiplied with.
//
// Row r of a sequence (for one kv head) is query token r / group, query head r % group of the group. Positions ascend
// with r, so the first row has the smallest range of visible keys and the last row the largest. Lane l holds rows l / 4
// and l / 4 + 8, as mma.cuh lays accumulators out.
//
// Everything here is equal in all lanes, so it lives in shared memory, once per warp: at head_dim 128 the two
// accumulators, the scores and q leave the registers no room for it.
#pragma once
#include "cuda/attention/shared_states.cuh"
#include "cuda/common/warpgroup.cuh"

namespace pe::cuda::attention {

// A barrier of the CTA's computing warps.
__device__ __forceinline__ void sync_workers() { named_barrier<kWorkersBarrier, kThreads>(); }
// Of them and of those that fetch for them, who come to it on ways of their own: __syncthreads is for all on one way.
__device__ __forceinline__ void sync_block() { named_barrier<kBlockBarrier, kThreads + kFetchThreads>(); }

struct KeyRange {
  int begin, end;  // keys [begin, end)
};
struct TileRange {
  int begin, end;  // tiles of 64 keys
};

struct Job {
  Item item;
  int kv_head;
  int query_begin, first_position;  // of the sequence's first query token: its index in q, and its absolute position
  int tile_rows;                    // rows of the item, all warps together
  int first_row, row_in_tile;       // this warp's first row, in the sequence and in the item
  int num_rows;                     // may be 0 in a CTA's last tile
  KeyRange first, last;             // what this warp's first and last row see
  KeyRange keys;                    // what any row of the item sees: all that is read
  TileRange tiles;                  // of the item's chunks, those with such keys
  int state_rows;                   // partial rows from one state of a row to its next
  int gathered;  // this warp's first row in Plan::shared_rows where the item gathers rows of many sequences, else -1
  int64_t table_offset, head_offset;
};
static_assert(sizeof(Job) <= kJobBytes, "room in shared memory");

__device__ __forceinline__ KeyRange keys_of_row(int first_position, int row, const RunArgs& args) {
  const int position = first_position + row / args.group;
  const int begin = args.window == 0 ? 0 : position - args.window + 1;
  return {begin > 0 ? begin : 0, position + 1};
}

__device__ __forceinline__ void store_job(const Job& j, Job* job) {
  __syncwarp();  // nobody reads the last job any more
  if (lane_id() == 0) *job = j;
  __syncwarp();
}

// An item as far as it is the same for all warps.
__device__ __forceinline__ Job job_of_item(const RunArgs& args, const Item& item, int kv_head, int max_tile_rows) {
  Job j;
  j.item = item;
  j.kv_head = kv_head;
  j.query_begin = args.query_start[item.seq];
  const int num_queries = args.query_start[item.seq + 1] - j.query_begin;
  j.first_position = args.seq_lens[item.seq] - num_queries;
  j.tile_rows = min(max_tile_rows, num_queries * args.group - item.first_row);
  j.keys = {keys_of_row(j.first_position, item.first_row, args).begin,
            keys_of_row(j.first_position, item.first_row + j.tile_rows - 1, args).end};
  j.tiles = {max(item.chunk_begin * kChunkTiles, j.keys.begin / kTileTokens),
             min(item.chunk_end * kChunkTiles, div_ceil(j.keys.end, kTileTokens))};
  j.state_rows = j.tile_rows;
  j.gathered = -1;
  const int table_row = args.table_rows == nullptr ? item.seq : args.table_rows[item.seq];
  j.table_offset = table_row * args.block_table_stride;
  j.head_offset = kv_head * args.head_stride;
  return j;
}

// The same for an item whose rows are gathered from the sequences of a group; each sees all keys of its chunks.
__device__ __forceinline__ Job job_of_gathered_item(const RunArgs& args, const Item& item, int kv_head) {
  const Group group = args.plan.groups[args.plan.shared_rows[item.shared].group];
  Job j;
  j.item = item;
  j.kv_head = kv_head;
  j.query_begin = j.first_position = 0;  // of no one sequence
  j.tile_rows = min(kCtaRows, group.first_row + group.num_rows - item.shared);
  j.keys = {0, item.chunk_end * kChunkTokens};
  j.tiles = {item.chunk_begin * kChunkTiles, item.chunk_end * kChunkTiles};
  j.state_rows = group.num_rows;
  j.gathered = item.shared;
  const int table_row = args.table_rows == nullptr ? item.seq : args.table_rows[item.seq];
  j.table_offset = table_row * args.block_table_stride;
  j.head_offset = kv_head * args.head_stride;
  return j;
}

// The rows of one warp: [row_in_tile, row_in_tile + 16) of the item's tile.
__device__ __forceinline__ void set_rows(const RunArgs& args, int row_in_tile, Job& j) {
  j.row_in_tile = row_in_tile;
  j.num_rows = max(0, min(kWarpRows, j.tile_rows - row_in_tile));
  if (j.gathered >= 0) {
    j.gathered = j.item.shared + row_in_tile;
    j.first_row = 0;
    j.first = j.last = j.keys;
    return;
  }
  j.first_row = j.item.first_row + row_in_tile;
  j.first = keys_of_row(j.first_position, j.first_row, args);
  j.last = keys_of_row(j.first_position, j.first_row + max(j.num_rows, 1) - 1, args);
}

// Writes the job of one warp. All lanes call.
__device__ __forceinline__ void set_job(const RunArgs& args, const Item& item, int kv_head, int max_tile_rows,
                                        int row_in_tile, Job* job) {
  Job j = job_of_item(args, item, kv_head, max_tile_rows);
  set_rows(args, row_in_tile, j);
  store_job(j, job);
}
// The same of a CTA's item, gathered or not.
__device__ __forceinline__ Job job_of_cta_item(const RunArgs& args, const Item& item, int kv_head) {
  return item.shared < 0 ? job_of_item(args, item, kv_head, kCtaRows) : job_of_gathered_item(args, item, kv_head);
}
__device__ __forceinline__ void set_cta_job(const RunArgs& args, const Item& item, int kv_head, int row_in_tile,
                                            Job* job) {
  Job j = job_of_cta_item(args, item, kv_head);
  set_rows(args, row_in_tile, j);
  store_job(j, job);
}

// The same from the job of another warp of the CTA.
__device__ __forceinline__ void set_rows_of_warp(const RunArgs& args, const Job& other, int row_in_tile, Job* job) {
  Job j = other;
  set_rows(args, row_in_tile, j);
  store_job(j, job);
}

// Some row of the warp sees some key of [token, token + 64).
__device__ __forceinline__ bool sees_tile(const Job& job, int token) {
  return job.num_rows > 0 && token < job.last.end && token + kTileTokens > job.first.begin;
}
// Every row of the warp sees all keys of [token, token + count).
__device__ __forceinline__ bool sees_all(const Job& job, int token, int count) {
  return token >= job.last.begin && token + count <= job.first.end;
}
// Some row of the item sees some key of [token, token + count).
__device__ __forceinline__ bool holds_keys(const Job& job, int token, int count) {
  return token < job.keys.end && token + count > job.keys.begin;
}

// Whether this lane's row i exists.
__device__ __forceinline__ bool has_row(const Job& job, int i) { return lane_row(i) < job.num_rows; }

template <int kHalves, int kCols>
__device__ __forceinline__ void hide_unseen(const RunArgs& args, const Job& job, int token, float (&scores)[kCols][4]) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const KeyRange keys = keys_of_row(job.first_position, job.first_row + lane_row(i), args);
    hide_keys(token, keys.begin, keys.end, i, scores);
  }
}

// Where a row of q or out begins.
__device__ __forceinline__ int64_t row_offset(const RunArgs& args, int query_begin, int row, int kv_head,
                                              int64_t token_stride, int64_t head_stride) {
  const int token = row / args.group, member = row % args.group;
  return int64_t{query_begin + token} * token_stride + (int64_t{kv_head} * args.group + member) * head_stride;
}

// Where a row of the warp begins in q.
__device__ __forceinline__ int64_t query_offset(const RunArgs& args, const Job& job, int row) {
  if (job.gathered >= 0) return gathered_offset(args, job.gathered + row, job.kv_head);
  return row_offset(args, job.query_begin, job.first_row + row, job.kv_head, args.q_token_stride, args.q_head_stride);
}

// Rows that do not exist are zeros: their scores are finite, and nobody reads their results. kQuads: kv_format.cuh.
template <typename T, int kDim, int kHalves, bool kQuads = false>
__device__ __forceinline__ void load_queries(const RunArgs& args, const Job& job, uint32_t (&q)[kDim / 16][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool exists = i < kHalves && has_row(job, i);
    const int64_t offset = exists ? query_offset(args, job, lane_row(i)) : 0;
    const auto* from = reinterpret_cast<const uint32_t*>(static_cast<const T*>(args.q) + offset);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int pair = 8 * k + (kQuads ? 2 : 1) * (lane_id() % 4);
      q[k][i] = exists ? from[pair] : 0;
      q[k][i + 2] = exists ? from[pair + (kQuads ? 1 : 4)] : 0;
    }
  }
}

// Columns [column, column + kCols) of the warp's rows.
template <typename T, int kCols, int kHalves>
__device__ __forceinline__ void store_output(const RunArgs& args, const Job& job, const RowState<kCols, kHalves>& state,
                                             int column = 0) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    if (!has_row(job, i)) continue;
    auto* to = reinterpret_cast<uint32_t*>(static_cast<T*>(args.out) +
                                           row_offset(args, job.query_begin, job.first_row + lane_row(i), job.kv_head,
                                                      args.out_token_stride, args.out_head_stride));
    const float scale = inverse_sum(state.sum[i]);
    to += column / 2;
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) {
      to[4 * j + lane_id() % 4] = pack2<T>(state.acc[j][2 * i] * scale, state.acc[j][2 * i + 1] * scale);
    }
  }
}

// Stores columns [column, column + kCols) of the warp's rows as partial result number `index` of the item.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void store_partial(const RunArgs& args, const Job& job, int index,
                                              const RowState<kCols, kHalves>& state, int column = 0) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    if (!has_row(job, i)) continue;
    const int64_t row = job.item.state + int64_t{index} * job.state_rows + job.row_in_tile + lane_row(i);
    const int64_t at = row * args.num_kv_heads + job.kv_head;
    auto* acc = reinterpret_cast<float2*>(args.partial_acc + at * kDim + column);
    if (column == 0 && lane_id() % 4 == 0)
      reinterpret_cast<float2*>(args.partial_sum)[at] = make_float2(state.max[i], state.sum[i]);
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) {
      acc[4 * j + lane_id() % 4] = make_float2(state.acc[j][2 * i], state.acc[j][2 * i + 1]);
    }
  }
}

// The two ends of a chunk: into the running state of the item, or to a partial result of its own.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void keep_chunk(const RunArgs& args, const Job& job, int chunk_index,
                                           RowState<kCols, kHalves>& chunk, RowState<kCols, kHalves>& running,
                                           int column = 0) {
  close_chunk(chunk);
  if (job.item.folds != 0) {
    merge_chunk(chunk, args.scale_log2, running);
  } else {
    store_partial<kDim>(args, job, chunk_index - job.item.chunk_begin, chunk, column);
  }
}
// Then the next one begins.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void end_chunk(const RunArgs& args, const Job& job, int chunk_index,
                                          RowState<kCols, kHalves>& chunk, RowState<kCols, kHalves>& running,
                                          int column = 0) {
  keep_chunk<kDim>(args, job, chunk_index, chunk, running, column);
  chunk.clear();
}
// The running state that a decode's item begins with: what the chunks have made of its rows that its sequence shares
// with others. While the warp waits for those, its own keys are on their way.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void begin_running(const RunArgs& args, const Job& job, RowState<kCols, kHalves>& running,
                                              int column = 0) {
  running.clear();
  if (job.item.shared >= 0 && job.item.folds != 0)
    go_on_from_shared<kDim>(args, job.item.shared, job.num_rows, job.kv_head, column, running);
}
template <typename T, int kDim, int kCols, int kHalves>
__device__ __forceinline__ void end_item(const RunArgs& args, const Job& job, const RowState<kCols, kHalves>& running,
                                         int column = 0) {
  if (job.item.folds == 0) return;
  if (job.item.split < 0) {
    store_output<T>(args, job, running, column);
  } else {
    store_partial<kDim>(args, job, 0, running, column);
  }
}

__device__ __forceinline__ bool ends_chunk(const Job& job, int tile) {
  return (tile + 1) % kChunkTiles == 0 || tile + 1 == job.tiles.end;
}

}  // namespace pe::cuda::attention
