// SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/kernel.cuh"

template void pe::cuda::attention::launch_attention_fp8<64>(const RunArgs&, const KvMaps&, DType, int, Stream);
