// SPDX-License-Identifier: Apache-2.0
// Dense layer on the CPU, between the driver (linear.cpp) and the kernels, one file per instruction set.
#pragma once
#include "pe/linear.h"

namespace pe::cpu {

constexpr int64_t kPanelFeatures = 16;  // output features side by side in one 64-byte line of a packed weight

// The part of the output that one call computes: rows of x times panels of the weight, over all of k.
struct LinearTile {
  int64_t row_begin = 0, row_end = 0;
  int64_t panel_begin = 0, panel_end = 0;
};

using LinearKernel = void (*)(const LinearParams&, const LinearTile&);

void linear_generic_bf16(const LinearParams&, const LinearTile&);
void linear_generic_f32(const LinearParams&, const LinearTile&);
void linear_avx2_bf16(const LinearParams&, const LinearTile&);
void linear_avx2_f32(const LinearParams&, const LinearTile&);
void linear_avx512_bf16(const LinearParams&, const LinearTile&);
void linear_avx512_f32(const LinearParams&, const LinearTile&);
void linear_amx_bf16(const LinearParams&, const LinearTile&);

// fp32 sums of the block under way: this thread's, 64-byte aligned, kLinearScratchFloats long.
constexpr int64_t kLinearScratchFloats = 512 * 256;
float* linear_scratch();

}  // namespace pe::cpu
