// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul in plain C++, and the choice among the versions.
#include "isa.h"
#include "rowwise_kernels.h"

namespace pe::cpu {

RowKernels row_kernels_generic() { return row_kernels_of<PlainVector>(); }

RowKernels row_kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512Bf16) return row_kernels_avx512();
  if (current_isa() >= Isa::kAvx2) return row_kernels_avx2();
#endif
  return row_kernels_generic();
}

}  // namespace pe::cpu
