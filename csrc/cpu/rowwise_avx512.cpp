// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul with AVX-512.
#if defined(__x86_64__)
#include "rowwise_kernels.h"
#include "simd_avx512.h"

namespace pe::cpu {

RowKernels row_kernels_avx512() { return row_kernels_of<Avx512Vector>(); }

}  // namespace pe::cpu
#endif
