// SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/kernel.cuh"

template void pe::cuda::attention::launch_attention<80>(const RunArgs&, const KvMaps&, DType, int, Stream);
template void pe::cuda::attention::launch_attention<96>(const RunArgs&, const KvMaps&, DType, int, Stream);
template void pe::cuda::attention::launch_attention<256>(const RunArgs&, const KvMaps&, DType, int, Stream);
