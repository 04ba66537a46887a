// SPDX-License-Identifier: Apache-2.0
// SwiGLU up to its last product (arXiv 2002.05202): out = silu(gate) * up, [gate, up] = x W^T with gate's rows first in
// W. To the bit what linear into gate_up and silu_mul of that give: the products are rounded to dtype in between.
#pragma once
#include "pe/activation.h"
#include "pe/linear.h"

namespace pe {

struct LinearSiluMulParams {
  void* out = nullptr;             // [m, cols]
  void* gate_up = nullptr;         // [m, 2 * cols], scratch: what it holds afterwards means nothing
  const void* x = nullptr;         // [m, k]
  const void* weight = nullptr;    // packed [2 * cols, k]
  int64_t m = 0, cols = 0, k = 0;  // cols % 8 == 0
  int64_t out_stride = 0, gate_up_stride = 0, x_stride = 0;
  DType dtype = DType::kBF16;
};

// The two ops that it stands for.
inline LinearParams linear_of(const LinearSiluMulParams& p) {
  LinearParams linear;
  linear.out = p.gate_up, linear.x = p.x, linear.weight = p.weight;
  linear.m = p.m, linear.n = 2 * p.cols, linear.k = p.k;
  linear.out_stride = p.gate_up_stride, linear.x_stride = p.x_stride;
  linear.dtype = linear.out_dtype = p.dtype;
  return linear;
}
inline SiluMulParams silu_mul_of(const LinearSiluMulParams& p) {
  return {p.out, p.gate_up, p.m, p.cols, p.out_stride, p.gate_up_stride, p.dtype};
}

namespace cpu {
void linear_silu_mul(const LinearSiluMulParams&);  // the two ops
}
namespace cuda {
// One kernel where the weight-streaming one serves the product, else the two ops. The weights may be read before the
// preceding kernel of the stream has ended: they must not be what it writes.
void linear_silu_mul(const LinearSiluMulParams&, Stream);
}  // namespace cuda
}  // namespace pe
