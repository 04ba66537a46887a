// SPDX-License-Identifier: Apache-2.0
// The only way a kernel is started. An empty grid starts nothing; an error becomes a pe::Error that names the op.
//
// `overlap` is the seam for programmatic dependent launch (sm_90): the kernel may start while its predecessor in the
// stream drains, and must call wait_for_predecessor() before it touches what that one wrote.
#pragma once
#include <mutex>
#include <set>
#include <utility>

#include "cuda/common/device.cuh"

namespace pe::cuda {

inline void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a launch error is not sticky; leave nothing behind that a later call would report as its own
  throw_error(op, std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

struct LaunchConfig {
  dim3 grid, block;
  size_t smem_bytes = 0;  // dynamic shared memory
  Stream stream = nullptr;
  const char* op = "";  // named in errors
  bool overlap = false;
  unsigned cluster = 1;  // sm_90: blocks of consecutive x that run together; divides grid.x
};

#if defined(PE_SIMT)

inline void wait_for_predecessor() {}
inline void release_successor() {}

template <typename... Params, typename... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  simt::run_grid({config.grid, config.block, config.smem_bytes, config.op}, [&] { kernel(args...); });
}

#else

// sm_90: blocks until the preceding kernel's writes are visible; nothing when launched without overlap.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// sm_90: the successor may start once every block has called this or ended.
__device__ __forceinline__ void release_successor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A kernel that asks for more than 48 KiB needs an attribute, set once per kernel and device.
inline void allow_smem(const char* op, const void* kernel, size_t bytes) {
  constexpr size_t kFreeBytes = 48 << 10;
  if (bytes <= kFreeBytes) return;
  static std::mutex mutex;
  using KernelOnDevice = std::pair<const void*, int>;
  static std::set<KernelOnDevice> allowed;
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) != 0) return;
  int most = 0;
  check_cuda(op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  PE_CHECK(op, bytes <= static_cast<size_t>(most),
           "needs " + std::to_string(bytes) + " bytes of shared memory, this GPU has " + std::to_string(most));
  cudaFuncAttributes attributes{};
  check_cuda(op, cudaFuncGetAttributes(&attributes, kernel));
  const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  allowed.insert({kernel, device});
}

template <typename... Params, typename... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  allow_smem(config.op, reinterpret_cast<const void*>(kernel), config.smem_bytes);
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (config.overlap) {
    attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster > 1) {
    attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[num_attributes].val.clusterDim.x = config.cluster;
    attributes[num_attributes].val.clusterDim.y = attributes[num_attributes].val.clusterDim.z = 1;
    ++num_attributes;
  }
  cudaLaunchConfig_t cuda{};
  cuda.gridDim = config.grid;
  cuda.blockDim = config.block;
  cuda.dynamicSmemBytes = config.smem_bytes;
  cuda.stream = config.stream;
  cuda.attrs = attributes;
  cuda.numAttrs = num_attributes;
  check_cuda(config.op, cudaLaunchKernelEx(&cuda, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

#endif

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes, Stream stream, const char* op,
            Args&&... args) {
  launch(LaunchConfig{grid, block, smem_bytes, stream, op}, kernel, std::forward<Args>(args)...);
}

}  // namespace pe::cuda
