// SPDX-License-Identifier: Apache-2.0
// RMSNorm with an optional residual addition in front.
// x[rows, cols] (+ residual[rows, cols], rewritten) and weight[cols] -> out[rows, cols]; rows 16-byte aligned
// grid: one CTA per row; rows of up to 128 vectors: one warp per row, 4 rows per CTA · smem: one float per warp
// tile: the whole row in registers, up to 4 vectors of 16 bytes per thread; read once, written once
// traffic: rows * cols * 2 elements (4 with residual), weights from the L2; ~4 flop per element -> HBM-bound
// floor: 256 x 4096 bf16 with residual: 8.4 MB = 2.8 us at 3.0 TB/s; 8192 x 576: 37.7 MB = 12.6 us; not yet measured
//
// Threads per row are a function of cols alone, and so is the order of the sum: a thread adds its elements in ascending
// order, then come the butterflies of reduce.cuh.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "pe/norm.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "rms_norm";
constexpr int kRowsPerCtaOfWarps = 4;

struct Row {  // what the kernel needs, in vectors
  void* out;
  const void* x;
  void* residual;
  const void* weight;
  int64_t rows, out_stride_bytes, x_stride_bytes, residual_stride_bytes;
  int num_vecs;
  float cols, eps;
};

template <typename T, int kThreads, int kVecs>
__global__ void __launch_bounds__(kThreads == kWarpSize ? kWarpSize * kRowsPerCtaOfWarps : kThreads)
    rms_norm_kernel(Row p) {
  constexpr bool kWarpPerRow = kThreads == kWarpSize;
  __shared__ float scratch[kThreads / kWarpSize];
  const int thread = kWarpPerRow ? lane_id() : static_cast<int>(threadIdx.x);
  const int64_t row = kWarpPerRow ? int64_t{blockIdx.x} * kRowsPerCtaOfWarps + warp_id() : int64_t{blockIdx.x};
  release_successor();
  if (row >= p.rows) return wait_for_predecessor();  // a whole warp, and only where there is no block barrier
  const char* x_row = static_cast<const char*>(p.x) + row * p.x_stride_bytes;
  char* out_row = static_cast<char*>(p.out) + row * p.out_stride_bytes;

  char* residual_row = p.residual == nullptr ? nullptr : static_cast<char*>(p.residual) + row * p.residual_stride_bytes;

#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int v = thread + i * kThreads;
    if (v < p.num_vecs) prefetch(static_cast<const uint4*>(p.weight) + v);
  }
  wait_for_predecessor();
  uint4 x[kVecs], w[kVecs], r[kVecs];  // all loads are on their way before the first is used
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int v = thread + i * kThreads;
    if (v >= p.num_vecs) continue;
    x[i] = load16(x_row + 16 * int64_t{v});
    if (residual_row != nullptr) r[i] = load16(residual_row + 16 * int64_t{v});
    w[i] = load16_const(static_cast<const uint4*>(p.weight) + v);
  }
  if (residual_row != nullptr) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      const int v = thread + i * kThreads;
      if (v >= p.num_vecs) continue;
      float a[kVec<T>], b[kVec<T>];
      unpack<T>(x[i], a);
      unpack<T>(r[i], b);
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) a[j] += b[j];
      x[i] = pack<T>(a);  // the norm sees the rounded sum, as the next layer's residual will
      store16(residual_row + 16 * int64_t{v}, x[i]);
    }
  }

  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (thread + i * kThreads >= p.num_vecs) continue;
    float a[kVec<T>];
    unpack<T>(x[i], a);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) sum = fmaf(a[j], a[j], sum);
  }
  sum = block_sum<kThreads>(sum, scratch);
  const float scale = 1.0f / sqrtf(sum / p.cols + p.eps);

#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int v = thread + i * kThreads;
    if (v >= p.num_vecs) continue;
    float a[kVec<T>], b[kVec<T>];
    unpack<T>(x[i], a);
    unpack<T>(w[i], b);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) a[j] = a[j] * scale * b[j];
    store16(out_row + 16 * int64_t{v}, pack<T>(a));
  }
}

template <typename T, int kThreads, int kVecs>
void launch_rows(const Row& row, Stream stream) {
  const bool warp_per_row = kThreads == kWarpSize;
  const int64_t ctas = warp_per_row ? div_ceil<int64_t>(row.rows, kRowsPerCtaOfWarps) : row.rows;
  launch_overlapping(rms_norm_kernel<T, kThreads, kVecs>, dim3(static_cast<unsigned>(ctas)),
                     dim3(warp_per_row ? kThreads * kRowsPerCtaOfWarps : kThreads), 0, stream, kOp, row);
}

// Few vectors per thread keep the latency of one row short (decode), whole warps keep it full (prefill).
template <typename T>
void launch_for_width(const Row& row, Stream stream) {
  if (row.num_vecs <= 128) return launch_rows<T, 32, 4>(row, stream);
  if (row.num_vecs <= 256) return launch_rows<T, 128, 2>(row, stream);
  if (row.num_vecs <= 512) return launch_rows<T, 256, 2>(row, stream);
  if (row.num_vecs <= 1024) return launch_rows<T, 512, 2>(row, stream);
  if (row.num_vecs <= 2048) return launch_rows<T, 512, 4>(row, stream);
  if (row.num_vecs <= 4096) return launch_rows<T, 1024, 4>(row, stream);
  throw_error(kOp, "a row has at most 4096 vectors of 16 bytes, got " + std::to_string(row.num_vecs));
}

}  // namespace

void rms_norm(const RmsNormParams& p, Stream stream) {
  PE_CHECK(kOp, p.cols > 0 && p.cols % 8 == 0, "cols must be a positive multiple of 8, got " + std::to_string(p.cols));
  check_aligned16(kOp, "out", p.out, p.out_stride, p.dtype);
  check_aligned16(kOp, "x", p.x, p.x_stride, p.dtype);
  check_aligned16(kOp, "residual", p.residual, p.residual_stride, p.dtype);
  check_aligned16(kOp, "weight", p.weight, 0, p.dtype);
  const auto bytes = static_cast<int64_t>(size_of(p.dtype));
  const Row row{p.out,
                p.x,
                p.residual,
                p.weight,
                p.rows,
                p.out_stride * bytes,
                p.x_stride * bytes,
                p.residual_stride * bytes,
                static_cast<int>(p.cols * bytes / 16),
                static_cast<float>(p.cols),
                p.eps};
  dispatch_dtype(kOp, p.dtype, [&](auto t) { launch_for_width<decltype(t)>(row, stream); });
}

}  // namespace pe::cuda
