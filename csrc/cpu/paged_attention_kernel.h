// SPDX-License-Identifier: Apache-2.0
// The attention kernel, written over Float, in fp32 throughout.
//
// A row's bits: its score with a key is one chain of multiply-adds over head_dim, ascending; its sums take the 64 keys
// of a tile lane by lane and are folded in one fixed pattern; its accumulator takes keys in ascending order. None of
// this depends on how many rows or keys stand beside it, and a key that the row does not see has weight zero, which
// changes no sum (the sign of a zero apart, which store() makes positive). So decode is the same code as prefill with
// few rows.
//
// A kv tile costs 2 * 64 * head_dim conversions and a transposition of K, then 2 * 64 * head_dim multiply-adds per row.
// With the three rows of a SmolLM2 decode the two are about equal, 1400 AVX-512 cycles per 16 KiB of cache: as fast as
// a core reads memory.
#pragma once
#include <limits>

#include "math_vector.h"
#include "paged_attention_tile.h"

namespace pe::cpu {
namespace {

constexpr int64_t kWidth = Float::kWidth;
constexpr int64_t kRunTokens = 16;  // the smallest block
constexpr int64_t kBlockRows = Float::kRows;
constexpr int64_t kBlockLanes = round_up(kBlockRows, kWidth);
constexpr int64_t kBlockKeys = Float::kColumns * kWidth;
static_assert(kTileTokens % kBlockKeys == 0 && kTileTokens % kWidth == 0 && kChunkTokens % kTileTokens == 0);
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

PE_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
PE_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

PE_INLINE int64_t group_of(const PagedAttentionParams& p) { return p.num_heads / p.kv.num_kv_heads; }

template <typename T>
void load_queries(const PagedAttentionParams& p, const QueryTile& tile, float* q) {
  const int64_t group = group_of(p), dim = p.kv.head_dim, padded = padded_dim(dim);
  const Float scale = Float::splat(p.scale);
  for (int64_t i = 0; i < tile.num_queries; ++i) {
    for (int64_t h = 0; h < group; ++h, q += padded) {
      const T* row = static_cast<const T*>(p.q) + (tile.first_token + i) * p.q_token_stride +
                     (tile.kv_head * group + h) * p.q_head_stride;
      for (int64_t d = 0; d < dim; d += kWidth) (Float::load(row + d, dim - d) * scale).store(q + d);
    }
  }
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

// The whole run is read: tokens of its block outside [begin, end) may hold anything and their scores are never used.
template <typename T>
PE_INLINE void transpose_keys(const T* k, int64_t token_stride, int64_t dim, float* kt) {
  for (int64_t j = 0; j < kRunTokens; j += kWidth) {
    for (int64_t d = 0; d < dim; d += kWidth) {
      Float square[kWidth];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) square[i] = Float::load(k + (j + i) * token_stride + d, dim - d);
      transpose(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) square[i].store(kt + (d + i) * kTileTokens + j);
    }
  }
}

template <typename T>
void stage_kv(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, float* kt, float* v) {
  const int64_t dim = p.kv.head_dim, padded = padded_dim(dim), token_stride = p.kv.token_stride;
  const KeyRuns runs = runs_of(p, tile, keys), upcoming = upcoming_runs(p, tile, keys);
  for (int64_t r = 0; r < kTileTokens / kRunTokens; ++r) {
    prefetch_run<T>(p, upcoming, r);
    if (r < runs.first || r >= runs.end) continue;
    const int64_t lane = r * kRunTokens;
    transpose_keys(static_cast<const T*>(p.kv.k) + runs.offset[r], token_stride, dim, kt + lane);
    const T* values = static_cast<const T*>(p.kv.v) + runs.offset[r];
    for (int64_t j = greater(keys.begin, lane); j < lesser(keys.end, lane + kRunTokens); ++j) {
      const T* row = values + (j - lane) * token_stride;
      for (int64_t d = 0; d < dim; d += kWidth) Float::load(row + d, dim - d).store(v + j * padded + d);
    }
  }
}

// s[r][key] = sum over d of q[r][d] * kt[d][key], for the blocks of keys that hold [begin, end).
template <int kRows>
void score_rows(const float* q, const float* kt, int64_t dim, int64_t begin, int64_t end, float* s) {
  const int64_t padded = padded_dim(dim);
  for (int64_t key = begin / kBlockKeys * kBlockKeys; key < end; key += kBlockKeys) {
    Float sums[kRows][Float::kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < Float::kColumns; ++c) sums[r][c] = Float::splat(0.0f);
    }
    for (int64_t d = 0; d < dim; ++d) {
      Float k[Float::kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < Float::kColumns; ++c) k[c] = Float::load(kt + d * kTileTokens + key + c * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Float x = Float::splat(q[r * padded + d]);
#pragma GCC unroll 4
        for (int c = 0; c < Float::kColumns; ++c) sums[r][c] = fma(x, k[c], sums[r][c]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < Float::kColumns; ++c) sums[r][c].store(s + r * kTileTokens + key + c * kWidth);
    }
  }
}

// acc[r][d] = acc[r][d] * decay[r] + sum over keys in [begin, end) of weights[r][key] * v[key][d], for kColumns vectors
// of d.
template <int kRows, int kColumns>
void add_values(const float* weights, const float* v, int64_t padded, int64_t begin, int64_t end, const float* decay,
                float* acc) {
  Float sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Float x = Float::splat(decay[r]);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sums[r][c] = Float::load(acc + r * padded + c * kWidth) * x;
  }
  for (int64_t key = begin; key < end; ++key) {
    Float values[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) values[c] = Float::load(v + key * padded + c * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Float x = Float::splat(weights[r * kTileTokens + key]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sums[r][c] = fma(x, values[c], sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sums[r][c].store(acc + r * padded + c * kWidth);
  }
}

// One row's scores become weights e^(s - max), zero outside [begin, end). Returns the new maximum; adds up into *sum.
PE_INLINE float soften(float* s, int64_t begin, int64_t end, float old_max, float* sum_of_weights) {
  constexpr int kVectors = kTileTokens / kWidth;
  Float x[kVectors];
  Float top = Float::splat(kMinusInfinity);
  const bool whole = begin <= 0 && end >= kTileTokens;
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    x[i] = Float::load(s + i * kWidth);
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

// `rows` neighbouring rows against one tile of keys.
struct RowBlock {
  const float* q = nullptr;
  const float* kt = nullptr;
  const float* v = nullptr;
  int64_t dim = 0;
  SoftmaxState state;
  int64_t begin[kBlockRows] = {}, end[kBlockRows] = {};  // the keys that each row sees
};

template <int kRows>
void attend_rows(const RowBlock& block) {
  alignas(64) float s[kRows * kTileTokens];
  alignas(64) float decay[kBlockLanes] = {}, added[kBlockLanes] = {}, sums[kBlockLanes] = {};
  std::memcpy(sums, block.state.sum, sizeof(float) * kRows);
  const int64_t dim = block.dim, padded = padded_dim(dim), begin = block.begin[0], end = block.end[kRows - 1];
  score_rows<kRows>(block.q, block.kt, dim, begin, end, s);
  for (int r = 0; r < kRows; ++r) {
    const float old_max = block.state.max[r];
    const float new_max = soften(s + r * kTileTokens, block.begin[r], block.end[r], old_max, added + r);
    block.state.max[r] = new_max;
    decay[r] = old_max - new_max;
  }
  for (int64_t r = 0; r < kRows; r += kWidth) exp_negative(Float::load(decay + r)).store(decay + r);
  for (int64_t r = 0; r < kRows; r += kWidth) {
    fma(Float::load(sums + r), Float::load(decay + r), Float::load(added + r)).store(sums + r);
  }
  std::memcpy(block.state.sum, sums, sizeof(float) * kRows);
  int64_t d = 0;
  for (; d + Float::kColumns * kWidth <= padded; d += Float::kColumns * kWidth) {
    add_values<kRows, Float::kColumns>(s, block.v + d, padded, begin, end, decay, block.state.acc + d);
  }
  for (; d < padded; d += kWidth) add_values<kRows, 1>(s, block.v + d, padded, begin, end, decay, block.state.acc + d);
}

template <int kRows = kBlockRows>
void attend_rows(const RowBlock& block, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return attend_rows<kRows - 1>(block, rows);
  }
  attend_rows<kRows>(block);
}

// The keys of `keys` that a query at `position` sees, as lanes of the tile.
PE_INLINE void seen_lanes(const KeyTile& keys, int64_t position, int32_t window, int64_t* begin, int64_t* end) {
  const int64_t first = window > 0 ? position - window + 1 : 0;
  *begin = greater(keys.begin, first - keys.origin);
  *end = lesser(keys.end, position + 1 - keys.origin);
}

// The rows that see any key of the tile stand side by side: a later query sees later keys.
PE_INLINE void attend_tile(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, RowBlock block) {
  const int64_t group = group_of(p), padded = padded_dim(block.dim);
  const int64_t first = greater(0, keys.origin + keys.begin - tile.first_position);
  int64_t last = tile.num_queries;
  if (p.window > 0) last = lesser(last, keys.origin + keys.end - 1 + p.window - tile.first_position);
  const float* q = block.q;
  const SoftmaxState state = block.state;
  for (int64_t row = first * group; row < last * group; row += kBlockRows) {
    const int64_t rows = lesser(kBlockRows, last * group - row);
    block.q = q + row * padded;
    block.state = {state.max + row, state.sum + row, state.acc + row * padded};
    for (int64_t r = 0; r < rows; ++r) {
      seen_lanes(keys, tile.first_position + (row + r) / group, p.window, block.begin + r, block.end + r);
    }
    attend_rows(block, rows);
  }
}

// The softmax of each row over the keys of one chunk, from the empty state.
template <typename T>
void attend(const PagedAttentionParams& p, const QueryTile& tile, int64_t chunk, const float* q, float* kv,
            SoftmaxState state) {
  const int64_t rows = tile.num_queries * group_of(p), dim = p.kv.head_dim, padded = padded_dim(dim);
  for (int64_t r = 0; r < rows; ++r) state.max[r] = kMinusInfinity, state.sum[r] = 0;
  std::memset(state.acc, 0, sizeof(float) * rows * padded);
  RowBlock block;
  block.q = q, block.kt = kv, block.v = kv + kTileTokens * padded, block.dim = dim, block.state = state;
  for (int64_t origin = chunk * kChunkTokens; origin < (chunk + 1) * kChunkTokens; origin += kTileTokens) {
    const KeyTile keys = keys_at(p, tile, origin);
    if (keys.begin >= keys.end) continue;
    stage_kv<T>(p, tile, keys, kv, kv + kTileTokens * padded);
    attend_tile(p, tile, keys, block);
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
    const Float inverse = Float::splat(1.0f / state.sum[row]);
    for (int64_t d = 0; d < dim; d += kWidth) {
      fma(Float::load(state.acc + row * padded + d), inverse, Float::splat(0.0f)).store(out + d, dim - d);
    }
  }
}

template <typename T>
constexpr AttentionKernel kKernel = {load_queries<T>, attend<T>, merge, store<T>};

PE_INLINE const AttentionKernel& kernel_for(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kKernel<float>;
    case DType::kF16:
      return kKernel<F16>;
    case DType::kBF16:
      break;
  }
  return kKernel<BF16>;
}

}  // namespace
}  // namespace pe::cpu
