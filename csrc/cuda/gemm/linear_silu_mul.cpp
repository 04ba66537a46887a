// SPDX-License-Identifier: Apache-2.0
// The gated product on the GPU: few rows on Hopper in one kernel (stream_kernel.cuh, kPairs), everything else as linear
// and silu_mul. Both give the same bits, so that the choice may depend on m.
// traffic of the one kernel: W, x and y; the two ops write 2 m cols elements besides and read them again
#include "pe/linear_silu_mul.h"

#include "cuda/gemm/stream_gemm.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "linear_silu_mul";

// The one kernel's view: the products of linear_of, of which only what silu_mul makes of them is stored.
LinearParams fused(const LinearSiluMulParams& p) {
  LinearParams pairs = linear_of(p);
  pairs.out = p.out, pairs.out_stride = p.out_stride;
  return pairs;
}

}  // namespace

void linear_silu_mul(const LinearSiluMulParams& p, Stream stream) {
  const auto got = [](int64_t value) { return ", got " + std::to_string(value); };
  PE_CHECK(kOp, p.m >= 0, "m must not be negative" + got(p.m));
  PE_CHECK(kOp, p.cols > 0 && p.cols % 8 == 0, "cols must be a positive multiple of 8" + got(p.cols));
  PE_CHECK(kOp, p.k >= 1, "k must be positive" + got(p.k));
  PE_CHECK(kOp, p.x_stride >= p.k, "x_stride must be at least k " + std::to_string(p.k) + got(p.x_stride));
  PE_CHECK(kOp, p.out_stride >= p.cols,
           "out_stride must be at least cols " + std::to_string(p.cols) + got(p.out_stride));
  PE_CHECK(kOp, p.m == 0 || (p.out && p.x && p.weight && p.gate_up), "out, x, weight and gate_up must not be null");
  const LinearParams pairs = fused(p);
  if (stream_gemm_fits(pairs, true)) return stream_gemm(pairs, stream, true);
  linear(linear_of(p), {}, stream);
  silu_mul(silu_mul_of(p), stream);
}

}  // namespace pe::cuda
