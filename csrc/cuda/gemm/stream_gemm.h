// SPDX-License-Identifier: Apache-2.0
// The two ways in which cuda::linear computes. They give the same bits (one fp32 sum per output, k ascending in steps
// of 16, one rounding), so that which one serves a call is a question of speed alone.
#pragma once
#include "cuda/gemm/stream_plan.h"
#include "pe/linear.h"

namespace pe::cuda {

// Whether the streaming kernel can compute this at all on the current device: sm_90, 16-bit x and weights, m up to 256,
// n % 8 == 0, k % 64 == 0, 16-byte aligned rows.
bool stream_gemm_can(const LinearParams&);
// Whether linear uses it.
bool stream_gemm_fits(const LinearParams&);
void stream_gemm(const LinearParams&, Stream);

// For benchmarks.
stream::Plan stream_gemm_plan(const LinearParams&);
void stream_gemm(const LinearParams&, const stream::Plan&, Stream);
void cublaslt_gemm(const LinearParams&, Stream);

}  // namespace pe::cuda
