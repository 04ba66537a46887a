// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "paged_attention_wide.h"

namespace pe::cpu {

const AttentionKernel& attention_avx2(DType dtype, DType stored, int64_t) { return widened_kernel(dtype, stored); }

}  // namespace pe::cpu
#endif
