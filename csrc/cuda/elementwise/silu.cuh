// SPDX-License-Identifier: Apache-2.0
// SiLU as every kernel computes it: silu_mul alone and behind a product must give the same bits.
#pragma once
#include "cuda/common/device.cuh"

namespace pe::cuda {

// e^-g overflows to inf for g < -88, and g / inf is the right limit, 0. The quotient's last bits are lost in rounding.
__device__ __forceinline__ float silu(float g) { return __fdividef(g, 1.0f + __expf(-g)); }

}  // namespace pe::cuda
