// SPDX-License-Identifier: Apache-2.0
// From a checked call to the backend of the device that its tensors are on.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "torch/convert.h"

// PE_ON_CUDA(call, statement): the statement with the tensors' device current, or the news that there are no CUDA
// kernels.
#ifdef PE_CUDA
#define PE_ON_CUDA(call, ...)                                                   \
  do {                                                                          \
    const torch::stable::accelerator::DeviceGuard guard((call).device_index()); \
    const Stream stream = current_stream(call);                                 \
    __VA_ARGS__;                                                                \
  } while (0)
#else
#define PE_ON_CUDA(call, ...) \
  (call).fail(                \
      "pyengine was built without CUDA kernels; with nvcc in PATH, run: pip install --force-reinstall --no-deps .")
#endif

// The common case: cpu::NAME(params) or cuda::NAME(params, stream).
#define PE_RUN(call, NAME, params)                  \
  do {                                              \
    if ((call).on_cuda()) {                         \
      PE_ON_CUDA(call, cuda::NAME(params, stream)); \
    } else {                                        \
      cpu::NAME(params);                            \
    }                                               \
  } while (0)
