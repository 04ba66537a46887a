// SPDX-License-Identifier: Apache-2.0
#include "logits_kernel.h"

namespace pe::cpu {

const LogitsKernels& logits_kernels_generic() { return kLogitsKernels; }

}  // namespace pe::cpu
