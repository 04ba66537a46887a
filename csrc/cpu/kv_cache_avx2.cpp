// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "kv_cache_kernel.h"

namespace pe::cpu {

RopeKernel rope_avx2(DType dtype, DType stored) { return rope_kernel_for(dtype, stored); }

}  // namespace pe::cpu
#endif
