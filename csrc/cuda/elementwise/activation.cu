// SPDX-License-Identifier: Apache-2.0
// SwiGLU's elementwise half: out = silu(gate) * up.
// gate_up[rows, 2 * cols] -> out[rows, cols]; rows contiguous inside, 16-byte aligned; cols % 8 == 0
// grid (rows, ceil(vectors / 256)) · block: as many warps as a row has, up to 8 · one vector of 16 bytes per thread
// traffic: rows * cols * 3 elements; ~10 flop per element -> HBM-bound
// floor: 256 x 14336 bf16: 22 MB = 7.3 us at 3.0 TB/s; 8192 x 1536: 75 MB = 25 us; not yet measured
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/elementwise/silu.cuh"
#include "pe/activation.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "silu_mul";
constexpr int kMaxThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    silu_mul_kernel(T* out, const T* gate_up, int num_vecs, int64_t out_stride, int64_t gate_up_stride) {
  release_successor();
  wait_for_predecessor();
  const int v = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (v >= num_vecs) return;
  const T* gate_row = gate_up + int64_t{blockIdx.x} * gate_up_stride;
  const T* up_row = gate_row + int64_t{num_vecs} * kVec<T>;
  float gate[kVec<T>], up[kVec<T>];
  unpack<T>(load16_once(gate_row + int64_t{v} * kVec<T>), gate);
  unpack<T>(load16_once(up_row + int64_t{v} * kVec<T>), up);
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) up[j] *= silu(gate[j]);
  store16(out + int64_t{blockIdx.x} * out_stride + int64_t{v} * kVec<T>, pack<T>(up));
}

}  // namespace

void silu_mul(const SiluMulParams& p, Stream stream) {
  PE_CHECK(kOp, p.cols > 0 && p.cols % 8 == 0, "cols must be a positive multiple of 8, got " + std::to_string(p.cols));
  check_aligned16(kOp, "out", p.out, p.out_stride, p.dtype);
  check_aligned16(kOp, "gate_up", p.gate_up, p.gate_up_stride, p.dtype);
  dispatch_dtype(kOp, p.dtype, [&](auto t) {
    using T = decltype(t);
    const int num_vecs = static_cast<int>(p.cols / kVec<T>);
    const int threads = num_vecs < kMaxThreads ? round_up(num_vecs, kWarpSize) : kMaxThreads;
    launch_overlapping(silu_mul_kernel<T>,
                       dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(div_ceil(num_vecs, threads))),
                       dim3(static_cast<unsigned>(threads)), 0, stream, kOp, static_cast<T*>(p.out),
                       static_cast<const T*>(p.gate_up), num_vecs, p.out_stride, p.gate_up_stride);
  });
}

}  // namespace pe::cuda
