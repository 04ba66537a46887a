// SPDX-License-Identifier: Apache-2.0
#include "cuda/gemm/stream_kernel.cuh"

template pe::cuda::stream::Kernel pe::cuda::stream::kernel_for<pe::cuda::f16, true>(int, int);
