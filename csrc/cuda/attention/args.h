// SPDX-License-Identifier: Apache-2.0
// What the attention kernels are told: the shape of a step, the plan's layout in memory, and one launch's pointers.
// Plain C++: the planning rules here are read by host and device alike.
#pragma once
#include "cuda/attention/kv_maps.h"
#include "cuda/attention/tile_config.h"

namespace pe::cuda::attention {

// How many CTAs run at a time (one per SM), set by the device or by a test.
struct Geometry {
  int num_ctas = 0;
  int num_slots = 0;  // of a warp's ring
  // All CTAs are resident at once: the first tickets go round the SMs instead of to whoever asks first.
  bool spread = false;
  // Shared memory is large enough for a CTA to work on one sequence's 16 rows at a time (decode_cta.cuh).
  bool by_cta = false;
  // The GPU has a copy engine that fetches boxes (decode_boxes.cuh).
  bool by_boxes = false;
};

// One piece of work: the rows from first_row on of a sequence (16 of the decode list, 128 of the prefill list), chunks
// [chunk_begin, chunk_end). The ticket that takes it also names the kv head.
struct alignas(16) Item {
  int32_t seq, first_row, chunk_begin, chunk_end;
  int32_t split;  // -1: the piece is the whole tile and writes the output; else the index of its Split
  int32_t state;  // where its partial results begin, in rows (see Split)
  int32_t folds;  // 1: all its chunks become one state (the whole tile, or the first piece); 0: one state per chunk
  int32_t unused;
};

// A tile cut into pieces. Its partial results are num_states x num_rows rows, from row `state` on: state 0 is the fold
// of the first piece, every later one a single chunk. Merging must go chunk by chunk, because (c0 + c1) + c2 and c0 +
// (c1 + c2) differ in bits.
struct alignas(16) Split {
  int32_t seq, first_row, num_rows, num_states, state, num_pieces, unused[2];
};

struct MergeRow {
  int32_t split, row;  // row of the tile
};

// A tile of rows of one sequence while the plan is made.
struct Tile {
  int32_t seq, first_row, num_rows, chunk_begin, chunk_end;
  int32_t on_cta, num_pieces, split;
};

struct Header {
  int32_t num_cta_items, num_warp_items, num_splits, num_merge_rows;
  uint32_t next_cta, next_warp, next_merge, num_done;  // tickets taken, CTAs gone; zero between launches
  uint32_t decodes_by_cta;                             // decode items are a CTA's work, not a warp's
};

struct Plan {
  Header* header = nullptr;
  Tile* tiles = nullptr;
  Item* cta_items = nullptr;
  Item* warp_items = nullptr;
  Split* splits = nullptr;
  MergeRow* merge_rows = nullptr;
  uint32_t* arrivals = nullptr;  // [num_splits, num_kv_heads] pieces that are done; zero between launches
};

// Upper bounds of a plan's lists; schedule.cuh says why they hold.
struct PlanBounds {
  int64_t tiles, cta_items, warp_items, splits, merge_rows;
};

inline PlanBounds plan_bounds(const PagedAttentionParams& p, const Geometry& g) {
  const int64_t rows = p.num_tokens * (p.num_heads / p.kv.num_kv_heads);
  const int64_t tiles = rows / kCtaRows + 2 * p.num_seqs;
  const int64_t ctas = g.num_ctas, warps = ctas * kWarps;
  const int64_t merge_rows = ctas * kCtaRows + warps * kWarpRows;
  return {tiles, tiles + ctas, 2 * p.num_seqs + warps, ctas + warps, merge_rows < rows ? merge_rows : rows};
}

// Lays the lists out behind `base` and returns the bytes they take (base may be null to ask for the size).
inline size_t lay_out(const PlanBounds& bounds, void* base, Plan* plan) {
  size_t bytes = 0;
  const auto place = [&](auto** list, int64_t count) {
    using T = std::remove_reference_t<decltype(**list)>;
    *list = base == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<char*>(base) + bytes);
    bytes = round_up(bytes + static_cast<size_t>(count) * sizeof(T), size_t{128});
  };
  place(&plan->header, 1);
  place(&plan->tiles, bounds.tiles);
  place(&plan->cta_items, bounds.cta_items);
  place(&plan->warp_items, bounds.warp_items);
  place(&plan->splits, bounds.splits);
  place(&plan->merge_rows, bounds.merge_rows);
  place(&plan->arrivals, bounds.splits);  // splits x kv heads has the same bound
  return bytes;
}

inline int64_t partial_row_bytes(const PagedAttentionParams& p) {
  return int64_t{p.kv.num_kv_heads} * (p.kv.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

// Rows of partial results that the workspace holds: every row of every chunk when that is little, else
// kMaxPartialBytes, but never less than one decoding sequence of max_seq_len needs.
inline int64_t partial_rows(const PagedAttentionParams& p) {
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  const int64_t chunks = div_ceil<int64_t>(p.max_seq_len, kChunkTokens);
  const int64_t most = p.num_tokens * group * chunks, one = group * chunks;
  const int64_t limit = kMaxPartialBytes / partial_row_bytes(p);
  const int64_t rows = limit > one ? limit : one;
  return rows < most ? rows : most;
}

struct PlanArgs {
  Plan plan;
  const int32_t* query_start;
  const int32_t* seq_lens;
  int64_t num_partial_rows;
  int32_t num_seqs, num_kv_heads, group, window, num_ctas;
  bool by_cta, by_boxes;
};

struct RunArgs {
  Plan plan;
  void* out;
  const void* q;
  const void* k;
  const void* v;
  const int32_t* block_tables;
  const int32_t* table_rows;
  const int32_t* query_start;
  const int32_t* seq_lens;
  float* partial_acc;  // [partial row, kv head, head_dim]
  float* partial_sum;  // [partial row, kv head, 2]: maximum of the raw scores, sum
  int64_t out_token_stride, out_head_stride, q_token_stride, q_head_stride;
  int64_t block_stride, head_stride, token_stride, block_table_stride;
  int32_t block_shift;  // log2 of block_size
  int32_t group, num_kv_heads, window, num_slots;
  float scale_log2;  // scale x log2(e): probabilities are powers of two
  bool spread, by_cta, by_boxes, settled;
};

// Host entry points with the geometry as an argument; the public ones pass the device's.
size_t plan_bytes(const PagedAttentionParams&, const Geometry&);
void plan(const PagedAttentionParams&, const Geometry&, Workspace plan, Stream);
void run(const PagedAttentionParams&, const Geometry&, Workspace plan, Workspace, Stream);

// One per head_dim, each in its own inst_*.cu.
template <int kDim>
void launch_attention(const RunArgs&, const KvMaps&, DType, int num_ctas, Stream);

}  // namespace pe::cuda::attention
