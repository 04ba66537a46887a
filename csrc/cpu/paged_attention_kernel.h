// SPDX-License-Identifier: Apache-2.0
// The frame of the attention kernel: which keys a tile of queries meets, the softmax, the merge. How dot products and
// weighted sums are computed is its parameter Math: in fp32 (paged_attention_wide.h) or on pairs of bf16
// (paged_attention_pairs.h).
//
// A row's bits: its dot product with a key is one chain over head_dim, ascending; its weights are summed lane by lane
// over the 64 keys of a tile and folded in one fixed pattern; its accumulator takes keys in ascending order. None of
// this depends on how many rows or keys stand beside it, and a key that the row does not see has weight zero, which
// changes no sum (the sign of a zero apart, which store() makes positive). So decode is the same code as prefill with
// few rows.
#pragma once
#include <limits>
#include <type_traits>

#include "math_vector.h"
#include "paged_attention_tile.h"

namespace pe::cpu {
namespace {

constexpr int64_t kWidth = Float::kWidth;
constexpr int64_t kRunTokens = 16;  // the smallest block
constexpr int64_t kRunsPerTile = kTileTokens / kRunTokens;
static_assert(kRunTokens % kWidth == 0 && kTileTokens % kRunTokens == 0 && kChunkTokens % kTileTokens == 0);
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

PE_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
PE_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

PE_INLINE int64_t group_of(const PagedAttentionParams& p) { return p.num_heads / p.kv.num_kv_heads; }

// Row r of the tile's q.
template <typename T>
PE_INLINE const T* query_row(const PagedAttentionParams& p, const QueryTile& tile, int64_t r) {
  const int64_t group = group_of(p);
  return static_cast<const T*>(p.q) + (tile.first_token + r / group) * p.q_token_stride +
         (tile.kv_head * group + r % group) * p.q_head_stride;
}

// Keys [begin, end) of one tile of 64; the absolute position of lane 0 is `origin`.
struct KeyTile {
  int64_t origin = 0, begin = 0, end = 0;
};

// The oldest key that a query of the tile sees.
PE_INLINE int64_t oldest_key(const PagedAttentionParams& p, const QueryTile& tile) {
  return p.window > 0 ? greater(0, tile.first_position - p.window + 1) : 0;
}

PE_INLINE KeyTile keys_at(const PagedAttentionParams& p, const QueryTile& tile, int64_t origin) {
  return {origin, greater(0, oldest_key(p, tile) - origin), lesser(kTileTokens, tile.last_position() + 1 - origin)};
}

// Where the rows of K and V lie, run by run: 16 consecutive tokens from a multiple of 16 share a block, whatever its
// size.
struct KeyRuns {
  int64_t offset[kTileTokens / kRunTokens];  // elements
  int64_t first = 0, end = 0;                // the runs that hold any key of the tile
};

PE_INLINE KeyRuns runs_of(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys) {
  const int shift = __builtin_ctz(static_cast<unsigned>(p.kv.block_size));
  const int64_t table_row = p.table_rows ? p.table_rows[tile.seq] : tile.seq;
  const int32_t* block_table = p.block_tables + table_row * p.block_table_stride;
  KeyRuns runs;
  runs.first = keys.begin / kRunTokens;
  runs.end = (keys.end + kRunTokens - 1) / kRunTokens;
  for (int64_t r = runs.first; r < runs.end; ++r) {
    const int64_t token = keys.origin + r * kRunTokens;
    runs.offset[r] = int64_t{block_table[token >> shift]} * p.kv.block_stride + tile.kv_head * p.kv.head_stride +
                     (token & (p.kv.block_size - 1)) * p.kv.token_stride;
  }
  return runs;
}

// The keys that come after these ones: those of the next tile, or of the queries that this thread turns to next.
PE_INLINE KeyRuns upcoming_runs(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys) {
  const int64_t next = keys.origin + kTileTokens;
  if (next <= tile.last_position()) return runs_of(p, tile, keys_at(p, tile, next));
  if (!tile.upcoming) return KeyRuns{};
  const int64_t origin = oldest_key(p, *tile.upcoming) / kTileTokens * kTileTokens;
  return runs_of(p, *tile.upcoming, keys_at(p, *tile.upcoming, origin));
}

// Blocks are scattered, so the hardware does not foresee the next one. One run ahead of time per run staged.
template <typename T>
PE_INLINE void prefetch_run(const PagedAttentionParams& p, const KeyRuns& runs, int64_t r) {
  if (r < runs.first || r >= runs.end) return;
  const int64_t row_bytes = p.kv.head_dim * static_cast<int64_t>(sizeof(T));
  const char* k = reinterpret_cast<const char*>(static_cast<const T*>(p.kv.k) + runs.offset[r]);
  const char* v = reinterpret_cast<const char*>(static_cast<const T*>(p.kv.v) + runs.offset[r]);
  for (int64_t i = 0; i < kRunTokens; ++i) {
    const int64_t row = i * p.kv.token_stride * static_cast<int64_t>(sizeof(T));
    for (int64_t byte = 0; byte < row_bytes; byte += 64) {
      __builtin_prefetch(k + row + byte);
      __builtin_prefetch(v + row + byte);
    }
  }
}

// The rows of one run, as elements of T: in the cache itself, or widened into `buffer`, [kRunTokens][kMaxDim].
constexpr int64_t kMaxDim = 256;
template <typename T>
struct RunRows {
  const T* rows = nullptr;
  int64_t stride = 0;
};
template <typename T, typename Stored>
PE_INLINE RunRows<T> open_run(const PagedAttentionParams& p, const void* cache, int64_t offset, T* buffer) {
  const Stored* rows = static_cast<const Stored*>(cache) + offset;
  if constexpr (std::is_same_v<T, Stored>) {
    return {rows, p.kv.token_stride};
  } else {
    const int64_t dim = p.kv.head_dim;
    for (int64_t i = 0; i < kRunTokens; ++i) {
      for (int64_t d = 0; d < dim; d += kWidth)
        Float::load(rows + i * p.kv.token_stride + d, dim - d).store(buffer + i * kMaxDim + d, dim - d);
    }
    return {buffer, kMaxDim};
  }
}

// One row's dot products become weights e^(scale * dot - max), zero outside [begin, end). Returns the new maximum.
PE_INLINE float soften(float* s, float scale, int64_t begin, int64_t end, float old_max, float* sum_of_weights) {
  constexpr int kVectors = kTileTokens / kWidth;
  Float x[kVectors];
  Float top = Float::splat(kMinusInfinity);
  const bool whole = begin <= 0 && end >= kTileTokens;
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    x[i] = fma(Float::load(s + i * kWidth), Float::splat(scale), Float::splat(0.0f));
    if (!whole) {
      const Int lane = Int::iota() + Int::splat(static_cast<int32_t>(i * kWidth));
      const Mask seen =
          less(Int::splat(static_cast<int32_t>(begin) - 1), lane) & less(lane, Int::splat(static_cast<int32_t>(end)));
      x[i] = select(seen, x[i], Float::splat(kMinusInfinity));
    }
    top = max(top, x[i]);
  }
  const float tile_max = max_of(top);
  const float new_max = old_max > tile_max ? old_max : tile_max;
  Float total = Float::splat(0.0f);
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    x[i] = exp_negative(x[i] - Float::splat(new_max));
    x[i].store(s + i * kWidth);
    total = total + x[i];
  }
  *sum_of_weights = sum(total);
  return new_max;
}

// Up to kBlockRows neighbouring rows against one tile of keys.
constexpr int64_t kBlockRows = 16;

struct RowBlock {
  const float* q = nullptr;  // as Math staged it
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t dim = 0, rows = 0;
  float scale = 0;
  SoftmaxState state;
  int64_t begin[kBlockRows] = {}, end[kBlockRows] = {};  // the keys that each row sees

  // Any row sees only keys in this range: later rows see later keys.
  int64_t first_key() const { return begin[0]; }
  int64_t end_key() const { return end[rows - 1]; }
};

// Turns the dot products of the block, [rows][kTileTokens], into weights; brings max and sum up to date. decay[r] is
// what the row's accumulator must be multiplied by.
PE_INLINE void soften_rows(const RowBlock& block, float* s, float* decay) {
  alignas(64) float added[kBlockRows] = {}, sums[kBlockRows] = {};
  for (int64_t r = 0; r < block.rows; ++r) {
    const float old_max = block.state.max[r];
    const float new_max = soften(s + r * kTileTokens, block.scale, block.begin[r], block.end[r], old_max, added + r);
    block.state.max[r] = new_max;
    decay[r] = old_max - new_max;
    sums[r] = block.state.sum[r];
  }
  for (int64_t r = 0; r < block.rows; r += kWidth) {
    const Float factor = exp_negative(Float::load(decay + r));
    factor.store(decay + r);
    fma(Float::load(sums + r), factor, Float::load(added + r)).store(sums + r);
  }
  for (int64_t r = 0; r < block.rows; ++r) block.state.sum[r] = sums[r];
}

// The keys of `keys` that a query at `position` sees, as lanes of the tile.
PE_INLINE void seen_lanes(const KeyTile& keys, int64_t position, int32_t window, int64_t* begin, int64_t* end) {
  const int64_t first = window > 0 ? position - window + 1 : 0;
  *begin = greater(keys.begin, first - keys.origin);
  *end = lesser(keys.end, position + 1 - keys.origin);
}

// The rows that see any key of the tile stand side by side: a later query sees later keys.
template <typename Math>
PE_INLINE void attend_tile(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, RowBlock block) {
  const int64_t group = group_of(p), padded = padded_dim(block.dim);
  const int64_t first = greater(0, keys.origin + keys.begin - tile.first_position);
  int64_t last = tile.num_queries;
  if (p.window > 0) last = lesser(last, keys.origin + keys.end - 1 + p.window - tile.first_position);
  const float* q = block.q;
  const SoftmaxState state = block.state;
  for (int64_t row = first * group; row < last * group; row += Math::kRows) {
    block.rows = lesser(Math::kRows, last * group - row);
    block.q = q + row * Math::query_floats(block.dim);
    block.state = {state.max + row, state.sum + row, state.acc + row * padded};
    for (int64_t r = 0; r < block.rows; ++r) {
      seen_lanes(keys, tile.first_position + (row + r) / group, p.window, block.begin + r, block.end + r);
    }
    Math::attend(block);
  }
}

PE_INLINE float scale_of(const float* scales, int64_t kv_head) { return scales ? scales[kv_head] : 1.0f; }

// The softmax of each row over the keys of one chunk, from the empty state.
template <typename Math>
void attend(const PagedAttentionParams& p, const QueryTile& tile, int64_t chunk, const float* q, float* kv,
            SoftmaxState state) {
  [[maybe_unused]] const typename Math::Session session;
  const int64_t rows = tile.num_queries * group_of(p), dim = p.kv.head_dim, padded = padded_dim(dim);
  for (int64_t r = 0; r < rows; ++r) state.max[r] = kMinusInfinity, state.sum[r] = 0;
  std::memset(state.acc, 0, sizeof(float) * rows * padded);
  float* v = kv + kTileTokens * padded;
  RowBlock block;
  block.q = q, block.k = kv, block.v = v, block.dim = dim, block.state = state;
  block.scale = p.scale * scale_of(p.kv.k_scale, tile.kv_head);
  for (int64_t origin = chunk * kChunkTokens; origin < (chunk + 1) * kChunkTokens; origin += kTileTokens) {
    const KeyTile keys = keys_at(p, tile, origin);
    if (keys.begin >= keys.end) continue;
    Math::stage(p, tile, keys, kv, v);
    attend_tile<Math>(p, tile, keys, block);
  }
}

void merge(int64_t rows, int64_t head_dim, SoftmaxState from, SoftmaxState into) {
  const int64_t padded = padded_dim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (from.sum[r] == 0) continue;
    float* acc = into.acc + r * padded;
    const float* added = from.acc + r * padded;
    if (into.sum[r] == 0) {
      into.max[r] = from.max[r], into.sum[r] = from.sum[r];
      std::memcpy(acc, added, sizeof(float) * padded);
      continue;
    }
    const Float old_max = Float::splat(into.max[r]), from_max = Float::splat(from.max[r]), top = max(old_max, from_max);
    const Float decay = exp_negative(old_max - top), weight = exp_negative(from_max - top);
    const Float total = fma(Float::splat(from.sum[r]), weight, Float::splat(into.sum[r]) * decay);
    into.max[r] = top.first();
    into.sum[r] = total.first();
    for (int64_t d = 0; d < padded; d += kWidth) {
      fma(Float::load(added + d), weight, Float::load(acc + d) * decay).store(acc + d);
    }
  }
}

template <typename T>
void store(const PagedAttentionParams& p, const QueryTile& tile, SoftmaxState state) {
  const int64_t group = group_of(p), dim = p.kv.head_dim, padded = padded_dim(dim);
  for (int64_t row = 0; row < tile.num_queries * group; ++row) {
    T* out = static_cast<T*>(p.out) + (tile.first_token + row / group) * p.out_token_stride +
             (tile.kv_head * group + row % group) * p.out_head_stride;
    const Float inverse = Float::splat(1.0f / state.sum[row] * scale_of(p.kv.v_scale, tile.kv_head));
    for (int64_t d = 0; d < dim; d += kWidth) {
      fma(Float::load(state.acc + row * padded + d), inverse, Float::splat(0.0f)).store(out + d, dim - d);
    }
  }
}

template <typename Math>
constexpr AttentionKernel kKernel = {Math::load_queries, attend<Math>, merge, store<typename Math::Element>};

}  // namespace
}  // namespace pe::cpu
