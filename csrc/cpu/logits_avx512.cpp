// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "logits_kernel.h"

namespace pe::cpu {

const LogitsKernels& logits_kernels_avx512() { return kLogitsKernels; }

}  // namespace pe::cpu
#endif
