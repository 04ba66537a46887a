// SPDX-License-Identifier: Apache-2.0
// Faults on purpose, in the namespace of our kernels: what the sanitizer must find before its silence means anything.
#include <cuda_runtime_api.h>

namespace pe::cuda {
namespace {

constexpr int kThreads = 64;

__global__ void reads_beyond(int* out, const int* in, int n) { out[threadIdx.x] = in[threadIdx.x + n]; }

__global__ void races(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // no barrier before
}

}  // namespace
}  // namespace pe::cuda

int main(int argc, char** argv) {
  int* memory = nullptr;
  if (cudaMalloc(&memory, 2 * pe::cuda::kThreads * sizeof(int)) != cudaSuccess) return 2;
  if (argc > 1 && argv[1][0] == 'r') {
    pe::cuda::races<<<1, pe::cuda::kThreads>>>(memory);
  } else {
    pe::cuda::reads_beyond<<<1, pe::cuda::kThreads>>>(memory, memory, 4096);
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
