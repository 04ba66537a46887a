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
  // Keys that many sequences begin with are read once for all of them (shared_prefix.cuh).
  bool shares = false;
};

// One piece of work: the rows from first_row on of a sequence (16 of the decode list, 128 of the prefill list), chunks
// [chunk_begin, chunk_end). The ticket that takes it also names the kv head.
struct alignas(16) Item {
  int32_t seq, first_row, chunk_begin, chunk_end;
  int32_t split;   // -1: the piece is the whole tile and writes the output; else the index of its Split
  int32_t state;   // where its partial results begin, in rows (see Split)
  int32_t folds;   // 1: all its chunks become one state (the whole tile, or the first piece); 0: one state per chunk
  int32_t shared;  // its first row in Plan::shared_rows, or -1. A CTA's item computes those rows, against the chunks
                   // that their sequences share; a warp's goes on where those chunks have ended
};

// A tile cut into pieces. Its partial results are num_states x num_rows rows, from row `state` on: state 0 is the fold
// of the first piece, every later one a single chunk. Merging must go chunk by chunk, because (c0 + c1) + c2 and c0 +
// (c1 + c2) differ in bits.
struct alignas(16) Split {
  int32_t seq, first_row, num_rows, num_states, state, num_pieces, unused[2];
};

// Sequences of few rows whose block tables begin with the same num_chunks whole chunks. All their rows together are
// tiles of 128, each with an index of Split (`split` and on), whose pieces it counts; nobody merges them. Their states
// are num_states x num_rows partial rows, from row `state` on.
struct alignas(16) Group {
  int32_t leader;                           // the sequence whose block table is used
  int32_t num_chunks, first_row, num_rows;  // rows in Plan::shared_rows
  int32_t state, num_states, num_pieces, split;
};
// A query row of a group: its token in q, its head among those of a kv head.
struct alignas(16) SharedRow {
  int32_t token, head, group, unused;
};
// A sequence's part in it while the plan is made: its group, or one of the negatives of shared_prefix.cuh.
struct Share {
  int32_t group, num_chunks;
};

struct MergeRow {
  int32_t split, row;  // row of the tile
};

// A tile of rows of one sequence, or of a group, while the plan is made.
struct Tile {
  int32_t seq, first_row, num_rows, chunk_begin, chunk_end;
  int32_t on_cta, num_pieces, split, shared;
};

// Launches that share a plan take turns with what they count in: each finds its own at zero, and puts the other back to
// zero, which the launch before it has left behind. So nobody has to find out who is the last to leave.
constexpr int kTurns = 2;
struct Tickets {
  uint32_t next_cta, next_warp, next_merge;  // taken
};

struct Header {
  int32_t num_cta_items, num_warp_items, num_splits, num_merge_rows;
  int32_t num_shared_rows;
  uint32_t decodes_by_cta;  // decode items are a CTA's work, not a warp's
  uint32_t turn;            // whose turn is next
  Tickets tickets[kTurns];
};

struct Plan {
  Header* header = nullptr;
  Tile* tiles = nullptr;
  Item* cta_items = nullptr;
  Item* warp_items = nullptr;
  Split* splits = nullptr;
  MergeRow* merge_rows = nullptr;
  uint32_t* arrivals[kTurns] = {};  // [num_splits, num_kv_heads] pieces that are done
  Share* shares = nullptr;          // of each sequence
  Group* groups = nullptr;
  SharedRow* shared_rows = nullptr;
};

// Upper bounds of a plan's lists; schedule.cuh says why they hold.
struct PlanBounds {
  int64_t tiles, cta_items, warp_items, splits, merge_rows, arrivals, seqs, groups, shared_rows;
};

inline int64_t max_shared_rows(const PagedAttentionParams& p) {
  const int64_t rows = p.num_tokens * (p.num_heads / p.kv.num_kv_heads), few = p.num_seqs * kMaxRowsOnWarps;
  return few < rows ? few : rows;
}

inline PlanBounds plan_bounds(const PagedAttentionParams& p, const Geometry& g) {
  const int64_t rows = p.num_tokens * (p.num_heads / p.kv.num_kv_heads);
  const int64_t groups = p.num_seqs / kMinSharers < kMaxGroups ? p.num_seqs / kMinSharers : kMaxGroups;
  const int64_t tiles = rows / kCtaRows + 2 * p.num_seqs + groups;
  const int64_t ctas = g.num_ctas, warps = ctas * kWarps, shared_tiles = max_shared_rows(p) / kCtaRows + groups;
  const int64_t merge_rows = ctas * kCtaRows + warps * kWarpRows;
  return {tiles,
          tiles + ctas,
          2 * p.num_seqs + warps,
          ctas + warps + shared_tiles,
          merge_rows < rows ? merge_rows : rows,
          ctas + warps + shared_tiles * p.kv.num_kv_heads,
          p.num_seqs,
          groups,
          max_shared_rows(p)};
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
  for (uint32_t*& arrivals : plan->arrivals) place(&arrivals, bounds.arrivals);
  place(&plan->shares, bounds.seqs);
  place(&plan->groups, bounds.groups);
  place(&plan->shared_rows, bounds.shared_rows);
  return bytes;
}

inline int64_t partial_row_bytes(const PagedAttentionParams& p) {
  return int64_t{p.kv.num_kv_heads} * (p.kv.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

// Rows of partial results of tiles that are cut: every row of every chunk when that is little, else kMaxPartialBytes,
// but never less than one decoding sequence of max_seq_len needs.
inline int64_t split_partial_rows(const PagedAttentionParams& p) {
  const int64_t group = p.num_heads / p.kv.num_kv_heads;
  const int64_t chunks = div_ceil<int64_t>(p.max_seq_len, kChunkTokens);
  const int64_t most = p.num_tokens * group * chunks, one = group * chunks;
  const int64_t limit = kMaxPartialBytes / partial_row_bytes(p);
  const int64_t rows = limit > one ? limit : one;
  return rows < most ? rows : most;
}
// Behind them in the workspace those of groups, likewise. The last chunk of a sequence is never shared.
inline int64_t shared_partial_rows(const PagedAttentionParams& p) {
  const int64_t chunks = p.num_seqs < kMinSharers ? 0 : p.max_seq_len / kChunkTokens;
  const int64_t most = max_shared_rows(p) * chunks, limit = kMaxPartialBytes / partial_row_bytes(p);
  return limit < most ? limit : most;
}
inline int64_t partial_rows(const PagedAttentionParams& p) { return split_partial_rows(p) + shared_partial_rows(p); }

struct PlanArgs {
  Plan plan;
  const int32_t* query_start;
  const int32_t* seq_lens;
  const int32_t* block_tables;
  const int32_t* table_rows;
  int64_t block_table_stride;
  int64_t num_split_partial_rows, num_shared_partial_rows;
  int32_t num_seqs, num_kv_heads, group, window, num_ctas;
  int32_t block_shift;  // log2 of block_size
  bool by_cta, by_boxes, shares;
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
  int32_t turn;
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
