// SPDX-License-Identifier: Apache-2.0
// The rules of the schedule: which rows make a tile, which tile is cut into pieces, where and in which order the pieces
// are listed. Plain arithmetic for host and device; plan.cuh applies it on the device, once per step.
//
// Rows of a sequence become tiles: 16 rows for a warp while the sequence has at most kMaxRowsOnWarps, else 128 rows for
// a CTA. A tile much longer than the average load of a worker is cut into pieces of whole chunks; pieces are listed
// longest first, and the workers of a constant grid take them by ticket, so one 64k sequence among short ones is spread
// over the GPU. What the plan decides never changes a bit of the result: it only says where a chunk is computed.
//
// Why plan_bounds holds. Let T be all work in (chunks x kv heads), W <= 8 x CTAs, B >= T / W the longest piece. A tile
// of n chunks is cut only if n > B, so per kv head fewer than T / heads / B <= W / heads tiles are cut, and cutting
// adds at most as many pieces.
//
// The rows of groups (shared_prefix.cuh) are rows of sequences that are on warps, so they and the sequences on CTAs
// make at most rows / 128 tiles and one more for each group and sequence. Their limit, too, is at least the average
// load of a CTA by items on CTAs, so cutting them adds no more pieces than above.
#pragma once
#include "cuda/attention/args.h"
#include "cuda/common/device.cuh"

namespace pe::cuda::attention {

struct TileShape {
  int num_tiles = 0, rows_per_tile = 0;
  bool on_cta = false;
};
__host__ __device__ inline TileShape tile_shape(int num_rows) {
  const bool on_cta = num_rows > kMaxRowsOnWarps;
  const int rows = on_cta ? kCtaRows : kWarpRows;
  return {num_rows <= 0 ? 0 : (num_rows + rows - 1) / rows, rows, on_cta};
}

__host__ __device__ inline Tile make_tile(int seq, int index, int num_queries, int seq_len, int group, int window,
                                          int num_shared_chunks = 0) {
  const int num_rows = num_queries * group;
  const TileShape shape = tile_shape(num_rows);
  Tile tile{};
  tile.seq = seq;
  tile.first_row = index * shape.rows_per_tile;
  const int left = num_rows - tile.first_row;
  tile.num_rows = left < shape.rows_per_tile ? left : shape.rows_per_tile;
  tile.on_cta = shape.on_cta;
  const int first_position = seq_len - num_queries + tile.first_row / group;
  const int last_position = seq_len - num_queries + (tile.first_row + tile.num_rows - 1) / group;
  const int first_key = window == 0 ? 0 : first_position - window + 1;
  tile.chunk_begin = num_shared_chunks > 0 ? num_shared_chunks : (first_key > 0 ? first_key : 0) / kChunkTokens;
  tile.chunk_end = (last_position > 0 ? last_position : 0) / kChunkTokens + 1;
  tile.num_pieces = 1;
  tile.split = tile.shared = -1;
  return tile;
}

// Chunks that a tile may have and stay whole, and that a piece of a longer one may have.
struct Limit {
  int whole, piece;
};
// Of tiles on CTAs and on warps, given the work in chunks of one kv head.
struct PieceLimits {
  Limit cta, warp;
  bool decodes_by_cta;
};
__host__ __device__ inline int at_least_one(int64_t amount, int64_t parts) {
  const int64_t up = (amount + parts - 1) / parts;
  return static_cast<int>(up > 1 ? up : 1);
}
// Whether CTAs decode. 1 x 1024 takes 35 us by warps and 19 by CTAs: that counts where there is hardly a chunk per CTA
// and, without pairs, where one sequence is so long that its pieces and their partial results would be many. Else warps
// with a piece each keep the memory busier than one piece with eight warps (docs/performance.md).
__host__ __device__ inline bool should_decode_by_cta(int64_t work, int64_t longest, int64_t num_ctas, bool by_boxes) {
  const int64_t warps = num_ctas * kWarps;
  return work <= num_ctas || (!by_boxes && work >= 2 * warps && longest * warps >= kLongTile * work);
}

// chunks: of one kv head, in tiles on CTAs and on warps; longest: of the latter.
__host__ __device__ inline PieceLimits piece_limits(int64_t cta_chunks, int64_t warp_chunks, int64_t longest,
                                                    int num_kv_heads, int num_ctas, bool by_cta, bool by_boxes) {
  const int64_t warp_work = warp_chunks * num_kv_heads, work = cta_chunks * num_kv_heads + warp_work, ctas = num_ctas;
  const bool decodes_by_cta = by_cta && should_decode_by_cta(warp_work, longest, ctas, by_boxes);
  const int cta = at_least_one(work * kCtaSlackNum, ctas * kCtaSlackDen);
  const int by_ctas = at_least_one(work, ctas * kDecodePiecesPerCta);
  const int64_t decoders = ctas * decoders_per_cta(by_boxes);
  const Limit by_warps{at_least_one(warp_work * kDecodeSlack, decoders), at_least_one(warp_work, decoders)};
  return {Limit{cta, cta}, decodes_by_cta ? Limit{by_ctas, by_ctas} : by_warps, decodes_by_cta};
}
// Pieces of a tile.
__host__ __device__ inline int num_pieces(int num_chunks, const Limit& limit) {
  return num_chunks <= limit.whole ? 1 : (num_chunks + limit.piece - 1) / limit.piece;
}

// Piece i of `pieces` equal ones covers chunks [begin + cut(i), begin + cut(i + 1)).
__host__ __device__ inline int piece_cut(int num_chunks, int pieces, int i) {
  return static_cast<int>(static_cast<int64_t>(num_chunks) * i / pieces);
}
__host__ __device__ inline int num_partial_states(int num_chunks, int pieces) {
  return 1 + num_chunks - piece_cut(num_chunks, pieces, 1);
}
// Bucket 0 holds the longest; tiles that stay whole for want of workspace may exceed the limit.
__host__ __device__ inline int length_bucket(int num_chunks, int limit) {
  const int64_t from_below = static_cast<int64_t>(num_chunks) * kNumBuckets / (limit + 1);
  return from_below >= kNumBuckets ? 0 : kNumBuckets - 1 - static_cast<int>(from_below);
}

// ---- chunks that sequences share ----------------------------------------------------------------------------------

// Leading chunks that a sequence may share: without a window, rows on warps, chunks of which each row sees every key
// and after which it still has some of its own.
__host__ __device__ inline int sharable_chunks(int num_queries, int seq_len, int group, int window) {
  const int num_rows = num_queries * group;
  if (window != 0 || num_rows <= 0 || tile_shape(num_rows).on_cta) return 0;
  return (seq_len - num_queries) / kChunkTokens;
}
__host__ __device__ inline int num_shared_tiles(int num_rows) { return (num_rows + kCtaRows - 1) / kCtaRows; }
// Chunks that are not read, of one kv head.
__host__ __device__ inline int64_t saved_chunks(int num_warp_tiles, int num_rows, int num_chunks) {
  return int64_t{num_warp_tiles - num_shared_tiles(num_rows)} * num_chunks;
}
__host__ __device__ inline bool sharing_pays(int64_t saved, int num_kv_heads, int num_ctas) {
  return saved * num_kv_heads >= int64_t{kMinSavedChunks} * num_ctas;
}
// Longest piece of a group's tile. While it is computed, each decoder of the other CTAs has a chunk of its own to work
// on, then it waits: so as many chunks are never too long, and more are not where all CTAs have as much to do.
// cta_chunks: of one kv head, in tiles on CTAs, those of groups included.
__host__ __device__ inline int shared_piece_limit(int64_t cta_chunks, int num_kv_heads, int num_ctas, int num_decoders,
                                                  int cta_limit) {
  const int load = at_least_one(cta_chunks * num_kv_heads * kCtaSlackNum, int64_t{num_ctas} * kCtaSlackDen);
  const int limit = load > num_decoders ? load : num_decoders;
  return limit < cta_limit ? limit : cta_limit;
}
// Pieces of a group's tile: as the limit asks, but at most max_states states (the more pieces, the more).
__host__ __device__ inline int shared_pieces(int num_chunks, int limit, int64_t max_states) {
  int pieces = (num_chunks + limit - 1) / limit;
  while (pieces > 1 && num_partial_states(num_chunks, pieces) > max_states) --pieces;
  return pieces;
}

}  // namespace pe::cuda::attention
