// SPDX-License-Identifier: Apache-2.0
#include "sampling_kernel.h"

namespace pe::cpu {

const RowKernels& row_kernels_generic() { return kRowKernels; }

}  // namespace pe::cpu
