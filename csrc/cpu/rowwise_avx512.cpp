// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul with AVX-512.
#if defined(__x86_64__)
#include "rowwise_kernels.h"
#include "simd_avx512.h"

namespace pe::cpu {

void rms_norm_avx512(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  rms_norm_any<Avx512Vector>(p, row_begin, row_end);
}
void silu_mul_avx512(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  silu_mul_any<Avx512Vector>(p, row_begin, row_end);
}

}  // namespace pe::cpu
#endif
