// SPDX-License-Identifier: Apache-2.0
// rope_write_kv on the CPU, between the driver (kv_cache.cpp) and the kernels (one file per instruction set).
#pragma once
#include "pe/kv_cache.h"

namespace pe::cpu {

using RopeKernel = void (*)(const RopeWriteKvParams&, int64_t token_begin, int64_t token_end);

RopeKernel rope_generic(DType dtype, DType stored);
RopeKernel rope_avx2(DType dtype, DType stored);
RopeKernel rope_avx512(DType dtype, DType stored);

}  // namespace pe::cpu
