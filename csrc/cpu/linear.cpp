// SPDX-License-Identifier: Apache-2.0
// Dense layer on the CPU: checks, the choice of kernel, the split among threads; and the packing of weights.
#include "pe/linear.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "isa.h"
#include "linear_kernels.h"
#include "pe/parallel.h"
#include "run.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pe::cpu {
namespace {

// What the layout of pe/linear.h asks of k.
int64_t k_multiple(DType dtype) { return dtype == DType::kF32 ? 8 : 32; }

std::string shape(int64_t a, int64_t b) { return "[" + std::to_string(a) + ", " + std::to_string(b) + "]"; }

LinearKernel kernel_for(DType dtype) {
  const bool f32 = dtype == DType::kF32;
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::kAmx:
      return f32 ? linear_avx512_f32 : linear_amx_bf16;
    case Isa::kAvx512Bf16:
      return f32 ? linear_avx512_f32 : linear_avx512_bf16;
    case Isa::kAvx2:
      return f32 ? linear_avx2_f32 : linear_avx2_bf16;
    case Isa::kGeneric:
      break;
  }
#endif
  return f32 ? linear_generic_f32 : linear_generic_bf16;
}

void check(const LinearParams& p) {
  PE_CHECK("linear", p.dtype != DType::kF16, "f16 is not supported on the CPU; load the model as bfloat16 or float32");
  PE_CHECK("linear", p.out_dtype == p.dtype || p.out_dtype == DType::kF32,
           std::string("out_dtype must be ") + name_of(p.dtype) + " or f32, got " + name_of(p.out_dtype));
  const int64_t multiple = k_multiple(p.dtype);
  PE_CHECK("linear", p.m >= 0 && p.n > 0 && p.k > 0,
           "expected m >= 0, n > 0, k > 0; got x " + shape(p.m, p.k) + ", weight " + shape(p.n, p.k));
  PE_CHECK("linear", p.k % multiple == 0,
           "k must be a multiple of " + std::to_string(multiple) + " for " + name_of(p.dtype) + ", got " +
               std::to_string(p.k));
  if (p.m == 0) return;
  PE_CHECK("linear", p.out && p.x && p.weight, "out, x and weight must not be null");
  PE_CHECK("linear", p.m == 1 || (p.x_stride >= p.k && p.out_stride >= p.n),
           "row strides must cover a row: x_stride " + std::to_string(p.x_stride) + " for k " + std::to_string(p.k) +
               ", out_stride " + std::to_string(p.out_stride) + " for n " + std::to_string(p.n));
}

// Threads form a grid of row shares x panel shares. More row shares mean more reading of the weight, so they come only
// when the panels alone would leave the largest share clearly too large.
struct Grid {
  int64_t row_shares = 1, panel_shares = 1;
};
constexpr int64_t kRowsPerShare = 32;  // rows are dealt out in blocks of the largest kernel

Grid grid_for(int64_t rows, int64_t panels, int64_t threads) {
  const int64_t row_blocks = div_ceil(rows, kRowsPerShare);
  Grid best = {1, std::min(threads, panels)};
  int64_t best_work = row_blocks * div_ceil(panels, best.panel_shares);
  for (int64_t row_shares = 2; row_shares <= std::min(threads, row_blocks); ++row_shares) {
    const int64_t panel_shares = std::min(threads / row_shares, panels);
    const int64_t work = div_ceil(row_blocks, row_shares) * div_ceil(panels, panel_shares);
    if (work * 10 >= best_work * 9) continue;
    best = {row_shares, panel_shares};
    best_work = work;
  }
  return best;
}

void linear_checked(const LinearParams& p) {
  if (p.m == 0) return;
  const LinearKernel kernel = kernel_for(p.dtype);
  const int64_t panels = div_ceil(p.n, kPanelFeatures), row_blocks = div_ceil(p.m, kRowsPerShare);
  const Grid grid = grid_for(p.m, panels, num_threads());
  parallel_for(grid.row_shares * grid.panel_shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const int64_t row_share = share / grid.panel_shares, panel_share = share % grid.panel_shares;
      LinearTile tile;
      tile.row_begin = row_blocks * row_share / grid.row_shares * kRowsPerShare;
      tile.row_end = std::min(row_blocks * (row_share + 1) / grid.row_shares * kRowsPerShare, p.m);
      tile.panel_begin = panels * panel_share / grid.panel_shares;
      tile.panel_end = panels * (panel_share + 1) / grid.panel_shares;
      kernel(p, tile);
    }
  });
}

// One panel: `rows` (1 .. 16) rows of `groups` 4-byte groups, transposed; missing rows become zeros. 16 lines at a
// time: their 1 KiB stays in the L1 while each row's 64 bytes are dealt out.
void pack_panel(uint32_t* out, const char* weight, int64_t stride_bytes, int64_t rows, int64_t groups) {
  constexpr int64_t kLines = 16;
  for (int64_t begin = 0; begin < groups; begin += kLines) {
    const int64_t end = std::min(begin + kLines, groups);
    for (int64_t row = 0; row < kPanelFeatures; ++row) {
      const char* source = weight + row * stride_bytes;  // an odd stride leaves bf16 rows at odd halves of a group
      for (int64_t i = begin; i < end; ++i) {
        uint32_t group = 0;
        if (row < rows) std::memcpy(&group, source + i * 4, sizeof group);
        out[i * kPanelFeatures + row] = group;
      }
    }
  }
}

// A weight is read front to back every step: with 2 MiB pages that goes about a fifth faster. Best effort.
void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(data), kPage);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void pack_weight_checked(const PackWeightParams& p) {
  const int64_t element = static_cast<int64_t>(size_of(p.dtype)), groups = p.k * element / 4;
  advise_huge_pages(p.out, packed_bytes(p.n, p.k, p.dtype));
  parallel_for(div_ceil(p.n, kPanelFeatures), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t row = panel * kPanelFeatures;
      pack_panel(static_cast<uint32_t*>(p.out) + panel * groups * kPanelFeatures,
                 static_cast<const char*>(p.weight) + row * p.weight_stride * element, p.weight_stride * element,
                 std::min(kPanelFeatures, p.n - row), groups);
    }
  });
}

}  // namespace

float* linear_scratch() {
  constexpr size_t kAlign = 64 / sizeof(float);
  thread_local std::unique_ptr<float[]> storage(new float[kLinearScratchFloats + kAlign]);
  return reinterpret_cast<float*>(round_up(reinterpret_cast<uintptr_t>(storage.get()), uintptr_t{64}));
}

void linear(const LinearParams& params) {
  check(params);
  run(params, [](const LinearParams& p) { linear_checked(p); });
}

size_t packed_bytes(int64_t n, int64_t k, DType dtype) {
  return static_cast<size_t>(round_up(n, kPanelFeatures) * k) * size_of(dtype);
}

void pack_weight(const PackWeightParams& params) {
  const int64_t multiple = k_multiple(params.dtype);
  PE_CHECK("pack_weight", params.out && params.weight, "out and weight must not be null");
  PE_CHECK("pack_weight", params.n > 0 && params.k > 0 && params.k % multiple == 0,
           "expected [n, k] with k a multiple of " + std::to_string(multiple) + " for " + name_of(params.dtype) +
               ", got " + shape(params.n, params.k));
  PE_CHECK(
      "pack_weight", params.weight_stride >= params.k,
      "weight_stride " + std::to_string(params.weight_stride) + " must cover a row of k " + std::to_string(params.k));
  run(params, [](const PackWeightParams& p) { pack_weight_checked(p); });
}

}  // namespace pe::cpu
