// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul with AVX2.
#if defined(__x86_64__)
#include "rowwise_kernels.h"
#include "simd_avx2.h"

namespace pe::cpu {

RowKernels row_kernels_avx2() { return row_kernels_of<Avx2Vector>(); }

}  // namespace pe::cpu
#endif
