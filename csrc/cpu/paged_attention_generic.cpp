// SPDX-License-Identifier: Apache-2.0
#include "paged_attention_kernel.h"

namespace pe::cpu {

const AttentionKernel& attention_generic(DType dtype) { return kernel_for(dtype); }

}  // namespace pe::cpu
