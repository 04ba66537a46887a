// SPDX-License-Identifier: Apache-2.0
// The two ways in which cuda::linear computes. They give the same bits (one fp32 sum per output, k ascending in steps
// of 16, one rounding), so that which one serves a call is a question of speed alone.
#pragma once
#include "cuda/gemm/stream_plan.h"
#include "pe/linear.h"

namespace pe::cuda {

// pairs: the rows of W are gate's, then up's, and out [m, n / 2] is silu_mul of the products, with the bits of the two
// ops one after the other. No bias then, and an out of x's dtype.

// Whether the streaming kernel can compute this at all on the current device: sm_90, 16-bit x and weights, m up to 256,
// n % 8 == 0 (pairs: 16), k % 64 == 0, 16-byte aligned rows.
bool stream_gemm_can(const LinearParams&, bool pairs = false);
// Whether linear (linear_silu_mul) uses it.
bool stream_gemm_fits(const LinearParams&, bool pairs = false);
void stream_gemm(const LinearParams&, Stream, bool pairs = false);

// For benchmarks.
stream::Plan stream_gemm_plan(const LinearParams&, bool pairs = false);
void stream_gemm(const LinearParams&, const stream::Plan&, Stream, bool pairs = false);
void cublaslt_gemm(const LinearParams&, Stream);

}  // namespace pe::cuda
