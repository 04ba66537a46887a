// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), optionally after a residual addition.
#pragma once
#include "pe/core.h"

namespace pe {

// With residual == nullptr:  out = x / rms(x) * weight.
// With residual:             residual = round(x + residual); out = residual / rms(residual) * weight.
// Mean of squares and scaling in fp32, one rounding at the end; the sum's order depends on `cols` alone.
// out may alias x.
struct RmsNormParams {
  void* out = nullptr;                                        // [rows, cols]
  const void* x = nullptr;                                    // [rows, cols]
  void* residual = nullptr;                                   // [rows, cols] read and written; may be null
  const void* weight = nullptr;                               // [cols]
  int64_t rows = 0, cols = 0;                                 // cols % 8 == 0
  int64_t out_stride = 0, x_stride = 0, residual_stride = 0;  // between rows; rows are contiguous inside
  float eps = 0;
  DType dtype = DType::kBF16;
};

namespace cpu {
void rms_norm(const RmsNormParams&);
}
namespace cuda {
void rms_norm(const RmsNormParams&, Stream);
}
}  // namespace pe
