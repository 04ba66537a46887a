// SPDX-License-Identifier: Apache-2.0
// The loop nest around every dense-layer kernel, and the inner kernel for vector instruction sets.
//
// Included only by the files compiled for one instruction set each, so all of it has internal linkage and it calls no
// library template: a shared inline function compiled for AVX-512 could be the copy that an older machine runs.
//
// A sum over k is one chain, k ascending, from zero. Blocking over k parks the chain in fp32 scratch and takes it up
// again, which changes no bit; blocks of rows and panels only choose which chains run side by side. Hence batch
// invariance.
#pragma once
#include <cstring>

#include "linear_kernels.h"
#include "simd.h"

namespace pe::cpu {
namespace {

// Up to max_rows x max_panels chains advanced by `steps` lines of the weight.
struct Block {
  const char* x = nullptr;  // first row, first k
  int64_t x_stride = 0;     // bytes between rows
  const char* w = nullptr;  // first panel, first k; one 64-byte line per step
  int64_t panel_bytes = 0;  // between panels
  int64_t steps = 0;
  float* sums = nullptr;  // [rows][sums_stride]
  int64_t sums_stride = 0;
  bool resume = false;  // the chains go on from `sums` instead of zero
  // Line i of a panel asks for the line `prefetch_near` bytes ahead while i < prefetch_turn, then `prefetch_far` bytes
  // ahead: the far distance leads into the panels that come next. Zero: another block of rows has these lines in the
  // cache already.
  int64_t prefetch_turn = 0, prefetch_near = 0, prefetch_far = 0;
};

constexpr int64_t kLineBytes = 64;
constexpr int64_t kDepth = 2048;         // k per block when many rows share a weight: 4 panels take 256 KiB
constexpr int64_t kPanelsPerBlock = 16;  // panels that share one fetch of the rows when k is blocked

constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Isa gives: kMaxRows and max_panels(rows), the largest block; kRowsBytes, how much of x is kept in the L2; kStepK, the
// k that one line holds; kPrefetchLines, how far ahead of itself a panel is fetched; advance(Block, rows, panels);
// finish(params, row, feature, sums, count), which adds the bias, rounds and stores.
template <typename Isa>
class BlockedLinear {
 public:
  BlockedLinear(const LinearParams& p, const LinearTile& tile) : p_(p), tile_(tile) {
    const int64_t rows = tile.row_end - tile.row_begin;
    const int64_t element = static_cast<int64_t>(size_of(p.dtype));
    x_stride_ = p.x_stride * element;
    panel_bytes_ = p.k / Isa::kStepK * kLineBytes;
    depth_ = rows <= Isa::kMaxRows || p.k <= kDepth ? p.k : kDepth;
    rows_per_block_ =
        at_most(Isa::kRowsBytes / (depth_ * element), kLinearScratchFloats / (kPanelsPerBlock * kPanelFeatures));
    rows_per_block_ = at_least(rows_per_block_ / Isa::kMaxRows, 1) * Isa::kMaxRows;
    const int64_t parts = ceil_div(rows, Isa::kMaxRows);
    max_panels_ = Isa::max_panels(rows <= rows_per_block_ ? static_cast<int>(ceil_div(rows, parts)) : Isa::kMaxRows);
    scratch_ = linear_scratch();
  }

  void run() {
    for (int64_t row = tile_.row_begin; row < tile_.row_end; row += rows_per_block_) {
      const int64_t row_end = at_most(row + rows_per_block_, tile_.row_end);
      const int64_t step = depth_ == p_.k ? max_panels_ : kPanelsPerBlock;
      for (int64_t panel = tile_.panel_begin; panel < tile_.panel_end; panel += step) {
        const LinearTile block = {row, row_end, panel, at_most(panel + step, tile_.panel_end)};
        for (int64_t k = 0; k < p_.k; k += depth_) run_depth(block, k, at_most(k + depth_, p_.k));
      }
    }
  }

 private:
  void run_depth(const LinearTile& block, int64_t k_begin, int64_t k_end) {
    for (int64_t panel = block.panel_begin; panel < block.panel_end; panel += max_panels_) {
      const int64_t panels = at_most(block.panel_end - panel, max_panels_);
      Block b;
      b.panel_bytes = panel_bytes_;
      b.w = static_cast<const char*>(p_.weight) + panel * panel_bytes_ + k_begin / Isa::kStepK * kLineBytes;
      b.steps = (k_end - k_begin) / Isa::kStepK;
      b.x_stride = x_stride_;
      b.resume = k_begin > 0;
      set_prefetch(b, panels, panel + panels == block.panel_end, block);
      // Rows in equal parts: 16 rows by 14 are 8 + 8, not 14 + 2.
      const int64_t rows = block.row_end - block.row_begin, parts = ceil_div(rows, Isa::kMaxRows);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t row = block.row_begin + rows * i / parts, row_end = block.row_begin + rows * (i + 1) / parts;
        b.x = static_cast<const char*>(p_.x) + row * x_stride_ + k_begin * static_cast<int64_t>(size_of(p_.dtype));
        sums_of(b, block, row, panel, panels);
        isa_.advance(b, static_cast<int>(row_end - row), static_cast<int>(panels));
        b.prefetch_near = b.prefetch_far = 0;
        if (k_end == p_.k) finish(b, row, row_end, panel, panels);
      }
    }
  }

  // Unblocked k: the sums live for one block only, in a corner that stays in the L1.
  void sums_of(Block& b, const LinearTile& block, int64_t row, int64_t panel, int64_t panels) const {
    if (depth_ == p_.k) {
      b.sums = scratch_;
      b.sums_stride = panels * kPanelFeatures;
    } else {
      b.sums_stride = kPanelsPerBlock * kPanelFeatures;
      b.sums = scratch_ + (row - block.row_begin) * b.sums_stride + (panel - block.panel_begin) * kPanelFeatures;
    }
  }

  void set_prefetch(Block& b, int64_t panels, bool last_of_block, const LinearTile& block) const {
    const int64_t ahead = at_most(Isa::kPrefetchLines, b.steps);
    b.prefetch_turn = b.steps - ahead;
    b.prefetch_near = ahead * kLineBytes;
    // The lines after the end of this block's: the next panels at the same k, or, after the last of them, the next k.
    const int64_t back_to_front = (panel_of(b) - block.panel_begin) * panel_bytes_;
    const bool next_k = last_of_block && depth_ < p_.k;
    b.prefetch_far =
        next_k ? b.prefetch_near - back_to_front : b.prefetch_near + panels * panel_bytes_ - b.steps * kLineBytes;
  }

  int64_t panel_of(const Block& b) const { return (b.w - static_cast<const char*>(p_.weight)) / panel_bytes_; }

  void finish(const Block& b, int64_t row, int64_t row_end, int64_t panel, int64_t panels) {
    const int64_t feature = panel * kPanelFeatures, count = at_most(panels * kPanelFeatures, p_.n - feature);
    for (int64_t r = row; r < row_end; ++r) isa_.finish(p_, r, feature, b.sums + (r - row) * b.sums_stride, count);
  }

  Isa isa_;
  const LinearParams& p_;
  const LinearTile& tile_;
  int64_t x_stride_ = 0, panel_bytes_ = 0, max_panels_ = 0, depth_ = 0, rows_per_block_ = 0;
  float* scratch_ = nullptr;
};

// finish() by vectors: T is the dtype of the bias and, unless fp32 is asked for, of the output.
template <typename Vector, typename T>
void finish_row(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
  const T* bias = p.bias ? static_cast<const T*>(p.bias) + feature : nullptr;
  const auto each = [&](auto* out) {
    int64_t i = 0;
    for (; i + Vector::kWidth <= count; i += Vector::kWidth) {
      const Vector sum = Vector::load(sums + i);
      Vector::store(out + i, bias ? sum + Vector::load(bias + i) : sum);
    }
    if (i < count) {
      const Vector sum = Vector::load(sums + i);  // whole: the sums of a padded panel exist
      Vector::store(out + i, bias ? sum + Vector::load(bias + i, count - i) : sum, count - i);
    }
  };
  if (p.out_dtype == DType::kF32) return each(static_cast<float*>(p.out) + row * p.out_stride + feature);
  each(static_cast<T*>(p.out) + row * p.out_stride + feature);
}

// advance() for vector instruction sets: R x P chains in registers. Vector gives Sum (16 fp32), Line (16 features of
// the weight), Pair (k values of one row, broadcast), and zero, load_sum, store_sum, load_line, broadcast,
// multiply_add.
template <typename Vector, int R, int P>
void advance_registers(const Block& b) {
  typename Vector::Sum sums[R][P];
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      sums[r][p] = b.resume ? Vector::load_sum(b.sums + r * b.sums_stride + p * kPanelFeatures) : Vector::zero();
    }
  }
  const char* x = b.x;
  const char* w = b.w;
  const auto walk = [&](int64_t steps, int64_t prefetch) __attribute__((always_inline)) {
    for (int64_t i = 0; i < steps; ++i) {
      typename Vector::Line lines[P];
      for (int p = 0; p < P; ++p) {
        __builtin_prefetch(w + p * b.panel_bytes + prefetch);
        lines[p] = Vector::load_line(w + p * b.panel_bytes);
      }
      for (int r = 0; r < R; ++r) {
        const typename Vector::Pair pair = Vector::broadcast(x + r * b.x_stride);
        for (int p = 0; p < P; ++p) sums[r][p] = Vector::multiply_add(sums[r][p], pair, lines[p]);
      }
      x += Vector::kStepBytes;
      w += kLineBytes;
    }
  };
  walk(b.prefetch_turn, b.prefetch_near);
  walk(b.steps - b.prefetch_turn, b.prefetch_far);
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) Vector::store_sum(b.sums + r * b.sums_stride + p * kPanelFeatures, sums[r][p]);
  }
}

template <typename Vector, int R, int P>
void advance_panels(const Block& b, int panels) {
  if constexpr (P > 1) {
    if (panels < P) return advance_panels<Vector, R, P - 1>(b, panels);
  }
  advance_registers<Vector, R, P>(b);
}

template <typename Vector, int R = Vector::kMaxRows>
void advance_vector(const Block& b, int rows, int panels) {
  if constexpr (R > 1) {
    if (rows < R) return advance_vector<Vector, R - 1>(b, rows, panels);
  }
  advance_panels<Vector, R, Vector::max_panels(R)>(b, panels);
}

}  // namespace
}  // namespace pe::cpu
