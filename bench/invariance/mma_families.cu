// SPDX-License-Identifier: Apache-2.0
// y[m, n] = x[m, k] w[n, k]^T in fp32, k ascending in steps of 16, one accumulator per element: once with mma.sync m16n8k16,
// once with wgmma m64n8k16. Slow on purpose: nothing here but the order of the sum. bench/invariance/families.py compares bits.
// m % 64 == 0, n % 8 == 0, k % 16 == 0; x, w bf16 row-major; build with -gencode=arch=compute_90a,code=sm_90a.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__global__ void with_mma(float* y, const uint32_t* x, const uint32_t* w, int n, int k) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4, row = blockIdx.y * 16, col = blockIdx.x * 8, words = k / 2;
  float c[4] = {0, 0, 0, 0};
  for (int at = 0; at < words; at += 8) {
    const uint32_t *a0 = x + size_t(row + g) * words + at, *a1 = a0 + size_t(8) * words, *b = w + size_t(col + g) * words + at;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0[t]), "r"(a1[t]), "r"(a0[t + 4]), "r"(a1[t + 4]), "r"(b[t]), "r"(b[t + 4]));
  }
  float* out = y + size_t(row + g) * n + col + 2 * t;
  out[0] = c[0], out[1] = c[1], out[8 * n] = c[2], out[8 * n + 1] = c[3];
}

__device__ uint64_t descriptor(const void* p, int lead, int stride) {
  const uint64_t address = __cvta_generic_to_shared(p);
  return ((address & 0x3ffff) >> 4) | (uint64_t(lead >> 4) << 16) | (uint64_t(stride >> 4) << 32);
}

// Shared memory in core matrices of 8 rows x 16 bytes: [k / 8][row / 8][8][8].
__global__ void with_wgmma(float* y, const uint4* x, const uint4* w, int n, int k) {
  __shared__ alignas(128) uint4 a[2][64], b[2][8];
  const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int row = blockIdx.y * 64, col = blockIdx.x * 8, vectors = k / 8;
  float c[4] = {0, 0, 0, 0};
  for (int at = 0; at < vectors; at += 2) {
    a[thread / 64][thread % 64] = x[size_t(row + thread % 64) * vectors + at + thread / 64];
    if (thread < 16) b[thread / 8][thread % 8] = w[size_t(col + thread % 8) * vectors + at + thread / 8];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0; }"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "l"(descriptor(a, 1024, 128)), "l"(descriptor(b, 128, 128)), "r"(1));
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
    __syncthreads();
  }
  float* out = y + size_t(row + thread / 32 * 16 + g) * n + col + 2 * t;
  out[0] = c[0], out[1] = c[1], out[8 * n] = c[2], out[8 * n + 1] = c[3];
}

}  // namespace

extern "C" int run_mma(float* y, const void* x, const void* w, int m, int n, int k) {
  with_mma<<<dim3(n / 8, m / 16), 32>>>(y, static_cast<const uint32_t*>(x), static_cast<const uint32_t*>(w), n, k);
  return cudaDeviceSynchronize();
}
extern "C" int run_wgmma(float* y, const void* x, const void* w, int m, int n, int k) {
  with_wgmma<<<dim3(n / 8, m / 64), 128>>>(y, static_cast<const uint4*>(x), static_cast<const uint4*>(w), n, k);
  return cudaDeviceSynchronize();
}
