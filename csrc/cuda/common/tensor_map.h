// SPDX-License-Identifier: Apache-2.0
// The driver's encoder of tensor maps, which the copy engine's instructions read (CUDA driver API, "Tensor Map Object
// Management").
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

namespace pe::cuda {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// From the driver that the runtime has opened, so that nothing links libcuda; null where it does not know the function.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) cudaGetLastError();
    const bool ok = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return ok ? reinterpret_cast<EncodeTiled>(function) : nullptr;
  }();
  return found;
}

}  // namespace pe::cuda
