// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul in plain C++.
#include "rowwise_kernels.h"

namespace pe::cpu {

void rms_norm_generic(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  rms_norm_any<PlainVector>(p, row_begin, row_end);
}
void silu_mul_generic(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  silu_mul_any<PlainVector>(p, row_begin, row_end);
}

}  // namespace pe::cpu
