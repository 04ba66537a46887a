// SPDX-License-Identifier: Apache-2.0
// Gated activation of the MLP: out = silu(gate) * up, gate and up side by side in one row (SwiGLU, arXiv 2002.05202).
#pragma once
#include "pe/core.h"

namespace pe {

// Computed in fp32, rounded once.
struct SiluMulParams {
  void* out = nullptr;            // [rows, cols]
  const void* gate_up = nullptr;  // [rows, 2 * cols]: gate in [0, cols), up in [cols, 2 * cols)
  int64_t rows = 0, cols = 0;     // cols % 8 == 0
  int64_t out_stride = 0, gate_up_stride = 0;
  DType dtype = DType::kBF16;
};

namespace cpu {
void silu_mul(const SiluMulParams&);
}
namespace cuda {
void silu_mul(const SiluMulParams&, Stream);
}
}  // namespace pe
