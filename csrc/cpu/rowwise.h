// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul over a range of rows: what norm.cpp and activation.cpp call, compiled once per instruction set.
#pragma once
#include "pe/activation.h"
#include "pe/norm.h"

namespace pe::cpu {

struct RowKernels {
  void (*rms_norm)(const RmsNormParams&, int64_t row_begin, int64_t row_end);
  void (*silu_mul)(const SiluMulParams&, int64_t row_begin, int64_t row_end);
};

RowKernels row_kernels_generic();
RowKernels row_kernels_avx2();
RowKernels row_kernels_avx512();
RowKernels row_kernels();  // the best of them under the current instruction set

// A share of rows worth waking a thread for: about 16 KiB of elements, some microseconds of work.
inline int64_t rows_per_share(int64_t cols) { return cols >= 8192 ? 1 : 8192 / cols; }

}  // namespace pe::cpu
