// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul with AVX2.
#if defined(__x86_64__)
#include "rowwise_kernels.h"
#include "simd_avx2.h"

namespace pe::cpu {

void rms_norm_avx2(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  rms_norm_any<Avx2Vector>(p, row_begin, row_end);
}
void silu_mul_avx2(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  silu_mul_any<Avx2Vector>(p, row_begin, row_end);
}

}  // namespace pe::cpu
#endif
