// SPDX-License-Identifier: Apache-2.0
#include "kv_cache_kernel.h"

namespace pe::cpu {

RopeKernel rope_generic(DType dtype, DType stored) { return rope_kernel_for(dtype, stored); }

}  // namespace pe::cpu
