// SPDX-License-Identifier: Apache-2.0
#include "sampling_kernel.h"

namespace pe::cpu {

const SampleKernels& sample_kernels_generic() { return kSampleKernels; }

}  // namespace pe::cpu
