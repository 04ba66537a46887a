// SPDX-License-Identifier: Apache-2.0
// Attention in fp32 for any dtype and head_dim: K and V of a tile are widened, K transposed, so that dot products run
// over keys and weighted sums over head_dim, lanes side by side, with one broadcast element of the row.
//
// A kv tile costs 2 * 64 * head_dim conversions and a transposition of K, then 2 * 64 * head_dim multiply-adds per row.
#pragma once
#include "paged_attention_kernel.h"

namespace pe::cpu {
namespace {

constexpr int64_t kBlockKeys = Float::kColumns * kWidth;
static_assert(kTileTokens % kBlockKeys == 0 && Float::kRows <= kBlockRows);

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

template <typename T, typename Stored>
void stage_kv(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, float* kt, float* v) {
  alignas(64) T buffer[kRunTokens * kMaxDim];
  const int64_t dim = p.kv.head_dim, padded = padded_dim(dim);
  const KeyRuns runs = runs_of(p, tile, keys), upcoming = upcoming_runs(p, tile, keys);
  for (int64_t r = 0; r < kTileTokens / kRunTokens; ++r) {
    prefetch_run<Stored>(p, upcoming, r);
    if (r < runs.first || r >= runs.end) continue;
    const int64_t lane = r * kRunTokens;
    const RunRows<T> run_of_keys = open_run<T, Stored>(p, p.kv.k, runs.offset[r], buffer);
    transpose_keys(run_of_keys.rows, run_of_keys.stride, dim, kt + lane);
    const RunRows<T> values = open_run<T, Stored>(p, p.kv.v, runs.offset[r], buffer);
    for (int64_t j = greater(keys.begin, lane); j < lesser(keys.end, lane + kRunTokens); ++j) {
      const T* row = values.rows + (j - lane) * values.stride;
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

template <int kRows>
void attend_rows(const RowBlock& block) {
  alignas(64) float s[kRows * kTileTokens];
  alignas(64) float decay[kBlockRows] = {};
  const int64_t padded = padded_dim(block.dim), begin = block.first_key(), end = block.end_key();
  score_rows<kRows>(block.q, block.k, block.dim, begin, end, s);
  soften_rows(block, s, decay);
  constexpr int kColumns = Float::kColumns;
  float* acc = block.state.acc;
  int64_t d = 0;
  for (; d + kColumns * kWidth <= padded; d += kColumns * kWidth) {
    add_values<kRows, kColumns>(s, block.v + d, padded, begin, end, decay, acc + d);
  }
  for (; d < padded; d += kWidth) add_values<kRows, 1>(s, block.v + d, padded, begin, end, decay, acc + d);
}

template <int kRows = Float::kRows>
void dispatch_rows(const RowBlock& block) {
  if constexpr (kRows > 1) {
    if (block.rows < kRows) return dispatch_rows<kRows - 1>(block);
  }
  attend_rows<kRows>(block);
}

// The Math of any dtype. Stored: of the cache.
template <typename T, typename Stored>
struct Widened {
  using Element = T;
  struct Session {};
  static constexpr int64_t kRows = Float::kRows;
  static constexpr int64_t query_floats(int64_t dim) { return padded_dim(dim); }

  static void load_queries(const PagedAttentionParams& p, const QueryTile& tile, float* q) {
    const int64_t rows = tile.num_queries * group_of(p), dim = p.kv.head_dim;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = query_row<T>(p, tile, r);
      for (int64_t d = 0; d < dim; d += kWidth) Float::load(row + d, dim - d).store(q + r * padded_dim(dim) + d);
    }
  }

  static void stage(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, float* kt, float* v) {
    stage_kv<T, Stored>(p, tile, keys, kt, v);
  }

  static void attend(const RowBlock& block) { dispatch_rows(block); }
};

template <typename T>
PE_INLINE const AttentionKernel& widened_kernel_of(DType stored) {
  return stored == DType::kF8E4M3 ? kKernel<Widened<T, F8>> : kKernel<Widened<T, T>>;
}
PE_INLINE const AttentionKernel& widened_kernel(DType dtype, DType stored) {
  if (dtype == DType::kF32) return widened_kernel_of<float>(stored);
  if (dtype == DType::kF16) return widened_kernel_of<F16>(stored);
  return widened_kernel_of<BF16>(stored);
}

}  // namespace
}  // namespace pe::cpu
