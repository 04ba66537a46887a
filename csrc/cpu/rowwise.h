// SPDX-License-Identifier: Apache-2.0
// RMSNorm and SiLU-mul over a range of rows: the functions that norm.cpp and activation.cpp choose among.
#pragma once
#include "isa.h"
#include "pe/activation.h"
#include "pe/norm.h"

namespace pe::cpu {

void rms_norm_generic(const RmsNormParams&, int64_t row_begin, int64_t row_end);
void rms_norm_avx2(const RmsNormParams&, int64_t row_begin, int64_t row_end);
void rms_norm_avx512(const RmsNormParams&, int64_t row_begin, int64_t row_end);

void silu_mul_generic(const SiluMulParams&, int64_t row_begin, int64_t row_end);
void silu_mul_avx2(const SiluMulParams&, int64_t row_begin, int64_t row_end);
void silu_mul_avx512(const SiluMulParams&, int64_t row_begin, int64_t row_end);

// Of the three versions of a kernel, the one for this machine.
template <typename Kernel>
Kernel for_current_isa([[maybe_unused]] Kernel avx512, [[maybe_unused]] Kernel avx2, Kernel generic) {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512Bf16) return avx512;
  if (current_isa() >= Isa::kAvx2) return avx2;
#endif
  return generic;
}

// A share of rows worth waking a thread for: about 16 KiB of elements, some microseconds of work.
inline int64_t rows_per_share(int64_t cols) { return cols >= 8192 ? 1 : 8192 / cols; }

}  // namespace pe::cpu
