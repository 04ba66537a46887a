// SPDX-License-Identifier: Apache-2.0
#include "paged_attention_wide.h"

namespace pe::cpu {

const AttentionKernel& attention_generic(DType dtype, DType stored, int64_t) { return widened_kernel(dtype, stored); }

}  // namespace pe::cpu
