// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "paged_attention_kernel.h"

namespace pe::cpu {

const AttentionKernel& attention_avx512(DType dtype) { return kernel_for(dtype); }

}  // namespace pe::cpu
#endif
