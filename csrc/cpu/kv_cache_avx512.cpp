// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "kv_cache_kernel.h"

namespace pe::cpu {

RopeKernel rope_avx512(DType dtype) { return rope_kernel_for(dtype); }

}  // namespace pe::cpu
#endif
