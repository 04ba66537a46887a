// SPDX-License-Identifier: Apache-2.0
// The emulator itself: right kernels give right results in every order, and each class of wrong kernel is caught.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "harness.h"

namespace pe::cuda {
namespace {

using test::contains;
using test::error_of;

template <int kThreads>
__global__ void reduce_kernel(const float* x, float* sums, int* scans) {
  __shared__ float scratch[kThreads / 32];
  __shared__ int scan_scratch[kThreads / 32];
  const int i = static_cast<int>(threadIdx.x);
  sums[blockIdx.x * kThreads + threadIdx.x] = block_sum<kThreads>(x[blockIdx.x * kThreads + threadIdx.x], scratch);
  int total = 0;
  const int before = block_exclusive_sum<kThreads>(i, scan_scratch, &total);
  scans[blockIdx.x * kThreads + threadIdx.x] = before == i * (i - 1) / 2 && total == kThreads * (kThreads - 1) / 2;
}

template <int kThreads>
void test_reduce() {
  test::Random random(7);
  test::Buffer<float> x(3 * kThreads);
  for (int i = 0; i < 3 * kThreads; ++i) x[i] = random.uniform();
  std::vector<unsigned char> first;
  test::for_each_order([&] {
    test::Buffer<float> sums(3 * kThreads);
    test::Buffer<int> scans(3 * kThreads);
    launch(reduce_kernel<kThreads>, dim3(3), dim3(kThreads), 0, nullptr, "reduce", x.data(), sums.data(), scans.data());
    for (int b = 0; b < 3; ++b) {
      double expected = 0;
      for (int i = 0; i < kThreads; ++i) expected += x[b * kThreads + i];
      for (int i = 0; i < kThreads; ++i) {
        EXPECT(std::abs(sums[b * kThreads + i] - expected) < 1e-4, "block %d thread %d", b, i);
        EXPECT(scans[b * kThreads + i] == 1, "block %d thread %d", b, i);
      }
    }
    if (first.empty()) first = sums.bytes();
    EXPECT(first == sums.bytes(), "a sum depends on the order of threads");
  });
}

__global__ void shuffle_kernel(int* out) {
  const int lane = lane_id();
  int* row = out + 8 * lane;
  row[0] = __shfl_sync(kFullMask, lane * 10, 35);  // lane 3
  row[1] = __shfl_up_sync(kFullMask, lane, 3, 8);  // inside groups of 8
  row[2] = __shfl_down_sync(kFullMask, lane, 3, 8);
  row[3] = __shfl_xor_sync(kFullMask, lane, 5);
  row[4] = static_cast<int>(__ballot_sync(kFullMask, lane % 3 == 0));
  row[5] =
      __any_sync(kFullMask, lane == 17) + 2 * __all_sync(kFullMask, lane >= 0) + 4 * __all_sync(kFullMask, lane != 9);
  if (lane % 2 == 0) {  // two groups of lanes in collectives of their own
    row[6] = __reduce_add_sync(0x55555555u, lane);
  } else {
    row[6] = __reduce_max_sync(0xaaaaaaaau, lane);
  }
  row[7] = static_cast<int>(__shfl_xor_sync(kFullMask, static_cast<unsigned long long>(lane) << 40, 1) >> 40);
}

void test_shuffles() {
  test::for_each_order([] {
    test::Buffer<int> out(32 * 8);
    launch(shuffle_kernel, dim3(1), dim3(32), 0, nullptr, "shuffle", out.data());
    for (int lane = 0; lane < 32; ++lane) {
      const int* row = out.data() + 8 * lane;
      EXPECT(row[0] == 30, "lane %d", lane);
      EXPECT(row[1] == (lane % 8 >= 3 ? lane - 3 : lane), "lane %d: %d", lane, row[1]);
      EXPECT(row[2] == (lane % 8 + 3 < 8 ? lane + 3 : lane), "lane %d: %d", lane, row[2]);
      EXPECT(row[3] == (lane ^ 5), "lane %d", lane);
      EXPECT(row[4] == 0x49249249, "lane %d: %x", lane, row[4]);
      EXPECT(row[5] == 3, "lane %d: %d", lane, row[5]);
      EXPECT(row[6] == (lane % 2 == 0 ? 240 : 31), "lane %d: %d", lane, row[6]);
      EXPECT(row[7] == (lane ^ 1), "lane %d: %d", lane, row[7]);
    }
  });
}

// C[16, 8] = A[16, 16] B[16, 8] with A row-major and B row-major in shared memory, brought there by cp.async.
template <typename T>
__global__ void mma_kernel(const T* a, const T* b, float* c) {
  PE_DYNAMIC_SMEM(T, smem);  // A: 16 rows of 16, B: 16 rows of 8
  T* smem_b = smem + 256;
  const int lane = lane_id();
  cp_async_16(smem + 8 * lane, a + 8 * lane);
  cp_async_commit();
  cp_async_16_zfill(smem_b + 8 * (lane % 16), b + 8 * (lane % 16), lane < 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  if (lane < 16) cp_async_16(smem_b + 8 * lane, b + 8 * lane);  // lanes 16.. above wrote zeros over it
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fa[4], fb[4];
  ldmatrix_x4(fa, smem + (lane % 16) * 16 + (lane / 16) * 8);
  ldmatrix_x4_trans(fb, smem_b + (lane % 16) * 8);  // matrices 0 and 1 are B's two halves of k; 2 and 3 repeat them
  float acc[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_m16n8k16<T>(acc, fa, fb[0], fb[1]);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = acc[i];
}

template <typename T>
void test_mma() {
  test::Random random(3);
  test::Buffer<T> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[i] = from_float<T>(random.uniform());
  for (int i = 0; i < 128; ++i) b[i] = from_float<T>(random.uniform());
  test::for_each_order([&] {
    test::Buffer<float> c(128);
    launch(mma_kernel<T>, dim3(1), dim3(32), 384 * sizeof(T), nullptr, "mma", a.data(), b.data(), c.data());
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        double expected = 1;
        for (int k = 0; k < 16; ++k) {
          expected += static_cast<double>(to_float(a[row * 16 + k])) * to_float(b[k * 8 + column]);
        }
        EXPECT(std::abs(c[row * 8 + column] - expected) < 1e-5, "row %d column %d", row, column);
      }
    }
    EXPECT(c.guards_intact());
  });
}

// ---- wrong kernels -------------------------------------------------------------------------------------------------

__global__ void exits_before_barrier() {
  if (threadIdx.x >= 40) return;
  __syncthreads();
}
__global__ void different_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[0] = 1;
    __syncthreads();
  }
}
__global__ void missing_lane(int* out) {
  if (threadIdx.x != 5) out[0] = __shfl_sync(kFullMask, 1, 0);
}
__global__ void not_in_mask(int* out) { out[0] = __shfl_sync(0x0000ffffu, 1, 0); }
__global__ void reads_outside_mask(int* out) {
  if (threadIdx.x < 16) out[0] = __shfl_sync(0x0000ffffu, 1, 20);
}
__global__ void half_warp(int* out) { out[0] = __ballot_sync(kFullMask, 1) != 0; }
__global__ void writes_past_smem(int n) {
  PE_DYNAMIC_SMEM(int, smem);
  smem[n] = 1;
}
__global__ void misaligned_copy(const char* x) {
  PE_DYNAMIC_SMEM(char, smem);
  cp_async_16(smem, x + 8);
}
// Reads its neighbour's element; right only if the barrier is there.
__global__ void neighbour(float* out, bool with_barrier) {
  __shared__ float x[64];
  x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = x[(threadIdx.x + 1) % 64];
}
__global__ void no_wait(const uint4* x, uint4* out, int pending) {
  PE_DYNAMIC_SMEM(uint4, smem);
  cp_async_16(smem + threadIdx.x, x + threadIdx.x);
  cp_async_commit();
  if (pending == 0) cp_async_wait<0>();
  if (pending == 1) cp_async_wait<1>();
  out[threadIdx.x] = smem[threadIdx.x];
}

void test_faults() {
  test::Buffer<int> out(64);
  const auto fault = [&](auto kernel, int threads, size_t smem, auto... args) {
    return error_of(
        [&] { launch(kernel, dim3(2), dim3(static_cast<unsigned>(threads)), smem, nullptr, "bad", args...); });
  };
  std::string text = fault(exits_before_barrier, 64, 0);
  EXPECT(contains(text, "bad: block (0, 0, 0) is deadlocked") && contains(text, "24 threads have returned"), "%s",
         text.c_str());
  EXPECT(contains(text, "40 threads wait in __syncthreads") && contains(text, "test_emulator.cpp"), "%s", text.c_str());
  text = fault(different_barriers, 64, 0, out.data());
  EXPECT(contains(text, "barrier reached in different places"), "%s", text.c_str());
  text = fault(missing_lane, 32, 0, out.data());
  EXPECT(contains(text, "31 threads wait in __shfl_sync") && contains(text, "0xffffffff"), "%s", text.c_str());
  text = fault(not_in_mask, 32, 0, out.data());
  EXPECT(contains(text, "lane 16 calls but is not in the mask"), "%s", text.c_str());
  text = fault(reads_outside_mask, 32, 0, out.data());
  EXPECT(contains(text, "which the mask leaves out"), "%s", text.c_str());
  text = fault(half_warp, 48, 0, out.data());
  EXPECT(contains(text, "past the 48 threads of the block"), "%s", text.c_str());
  text = fault(writes_past_smem, 1, 20, 5);
  EXPECT(contains(text, "wrote outside its 20 bytes"), "%s", text.c_str());
  text = fault(writes_past_smem, 1, 20, -1);
  EXPECT(contains(text, "wrote outside its 20 bytes"), "%s", text.c_str());
  EXPECT(fault(writes_past_smem, 1, 20, 4).empty());
  text = fault(misaligned_copy, 1, 16, reinterpret_cast<const char*>(out.data()));
  EXPECT(contains(text, "cp.async: misaligned global"), "%s", text.c_str());
  EXPECT(contains(fault(half_warp, 2000, 0, out.data()), "1 to 1024 threads"));
  EXPECT(contains(fault(writes_past_smem, 1, 300 << 10, 0), "bytes of shared memory"));
}

__global__ void waits_in_block_0() {
  if (blockIdx.x == 0) wait_for_predecessor();
}

void test_overlap_needs_a_wait() {
  const auto error = [](unsigned blocks) {
    return error_of([&] { launch_overlapping(waits_in_block_0, dim3(blocks), dim3(32), 0, nullptr, "early"); });
  };
  EXPECT(error(1).empty());
  const std::string text = error(2);
  EXPECT(contains(text, "early: block (1, 0, 0) ended without wait_for_predecessor"), "%s", text.c_str());
  launch(waits_in_block_0, dim3(2), dim3(32), 0, nullptr, "plain");
}

void test_races_show() {
  const auto run = [](bool with_barrier) {
    std::vector<unsigned char> first;
    bool same = true;
    test::for_each_order([&] {
      test::Buffer<float> out(64);
      launch(neighbour, dim3(1), dim3(64), 0, nullptr, "neighbour", out.data(), with_barrier);
      if (first.empty()) first = out.bytes();
      same = same && first == out.bytes();
    });
    return same;
  };
  EXPECT(run(true));
  EXPECT(!run(false));
}

void test_poison() {
  test::Buffer<float> out(64);
  simt::options().order = simt::Order::kForward;
  for (int i = 0; i < 2; ++i) {  // the second launch must not see the first one's shared memory
    launch(neighbour, dim3(1), dim3(64), 0, nullptr, "neighbour", out.data(), false);
    EXPECT(std::isnan(out[0]) && out[63] == 0.0f, "run %d: %f %f", i, out[0], out[63]);
  }
  test::Buffer<uint4> x(32), copied(32);
  std::memset(x.data(), 7, 512);
  for (const int pending : {0, 1, -1}) {
    launch(no_wait, dim3(1), dim3(32), 512, nullptr, "no_wait", x.data(), copied.data(), pending);
    const unsigned expected = pending == 0 ? 0x07070707u : 0xffffffffu;
    for (int i = 0; i < 32; ++i) EXPECT(copied[i].x == expected && copied[i].w == expected, "pending %d", pending);
  }
}

}  // namespace
}  // namespace pe::cuda

int main() {
  pe::cuda::test_reduce<32>();
  pe::cuda::test_reduce<96>();
  pe::cuda::test_reduce<1024>();
  pe::cuda::test_shuffles();
  pe::cuda::test_mma<pe::cuda::bf16>();
  pe::cuda::test_mma<pe::cuda::f16>();
  pe::cuda::test_faults();
  pe::cuda::test_overlap_needs_a_wait();
  pe::cuda::test_races_show();
  pe::cuda::test_poison();
  return pe::test::report("emulator");
}
