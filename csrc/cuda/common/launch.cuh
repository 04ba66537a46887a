// SPDX-License-Identifier: Apache-2.0
// The only way a kernel is started. An empty grid starts nothing; an error becomes a pe::Error that names the op.
//
// launch_overlapping: programmatic dependent launch (sm_90). The kernel may start as soon as every block of its
// predecessor in the stream has called release_successor() or ended, which spares a launch's latency and lets it fetch
// weights early. Since the predecessor may itself have started early, several kernels of a step may be in flight. What
// keeps them in order:
//   1. Every block calls wait_for_predecessor() before it ends, also one that finds nothing to do, and every thread
//      before its first access to memory that a kernel of a step writes, or it is ordered behind a thread that has (in
//      stream_kernel.cuh the producer waits, the others for its copies). The wait ends when the predecessor has
//      completed and its writes are visible. So, by induction, a kernel completes after all before it, and behind the
//      wait all is as in a plain launch: workspaces, tickets and buffers that are used again are safe.
//   2. Before the wait a kernel writes nothing but shared memory and reads only what no kernel writes: weights, tables.
//      A load to a register is moved behind the wait by the compiler; prefetch() and asynchronous copies stay.
//   3. release_successor() promises nothing about data and may stand anywhere, also before the wait: where it stands
//      only decides when the successor's blocks take room on the SMs. Exception: a kernel that releases behind its own
//      wait lets its successor read everything but its own results before the successor's wait (sample.cu).
//   4. What a predecessor wrote is not read with load16_const or __ldg at an address known before the wait: such a load
//      is of memory that never changes, and may be moved up.
// There is no deadlock by room: a successor starts only when all blocks before it run or have ended. A predecessor that
// is not ours (cuBLASLt, a copy) or was launched plainly is waited for the same way, and a plain launch or the end of a
// graph waits for its predecessor's completion, that is for all. The emulator fails a block that breaks rule 1.
#pragma once
#include <atomic>
#include <mutex>
#include <set>
#include <utility>

#include "cuda/common/device.cuh"
#include "cuda/common/tuning.h"

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
  const char* op = "";   // named in errors
  bool overlap = false;  // see above
};

#if defined(PE_SIMT)

inline void wait_for_predecessor() { simt::wait_for_predecessor(); }
inline void release_successor() {}

template <typename... Params, typename... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  simt::run_grid({config.grid, config.block, config.smem_bytes, config.op, config.overlap}, [&] { kernel(args...); });
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

// Whether the current device can start a kernel early; asked once per device.
inline bool can_overlap(const char* op) {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> major_of[kMaxDevices];  // 0: not asked yet
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  if (device >= kMaxDevices) return false;
  int major = major_of[device].load(std::memory_order_relaxed);
  if (major == 0) {
    check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    major_of[device].store(major, std::memory_order_relaxed);
  }
  return major >= 9;
}

template <typename... Params, typename... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args&&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  allow_smem(config.op, reinterpret_cast<const void*>(kernel), config.smem_bytes);
  cudaLaunchAttribute overlaps{};
  overlaps.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlaps.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t cuda{};
  cuda.gridDim = config.grid;
  cuda.blockDim = config.block;
  cuda.dynamicSmemBytes = config.smem_bytes;
  cuda.stream = config.stream;
  cuda.attrs = &overlaps;
  cuda.numAttrs = config.overlap && tuning.overlap != 0 && can_overlap(config.op) ? 1 : 0;
  check_cuda(config.op, cudaLaunchKernelEx(&cuda, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

#endif

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes, Stream stream, const char* op,
            Args&&... args) {
  launch(LaunchConfig{grid, block, smem_bytes, stream, op}, kernel, std::forward<Args>(args)...);
}

template <typename... Params, typename... Args>
void launch_overlapping(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes, Stream stream,
                        const char* op, Args&&... args) {
  launch(LaunchConfig{grid, block, smem_bytes, stream, op, true}, kernel, std::forward<Args>(args)...);
}

}  // namespace pe::cuda
