// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "sampling_kernel.h"

namespace pe::cpu {

const SampleKernels& sample_kernels_avx2() { return kSampleKernels; }

}  // namespace pe::cpu
#endif
