// SPDX-License-Identifier: Apache-2.0
// The host's half of the weight-streaming GEMM: which calls it can serve, the tensor maps, the launch.
#include <algorithm>
#include <map>
#include <tuple>

#include "cuda/common/tensor_map.h"
#include "cuda/gemm/stream_gemm.h"
#include "cuda/gemm/stream_kernel.cuh"

namespace pe::cuda {
namespace {

using namespace stream;

constexpr const char* kOp = "linear";

Kernel kernel_of(DType dtype, int tile, int groups) {
  return dtype == DType::kBF16 ? kernel_for<bf16>(tile, groups) : kernel_for<f16>(tile, groups);
}

// ---- the device -----------------------------------------------------------------------------------------------------

// Blocks that run at once, one per SM; 0 where the kernel cannot run.
int places_on(int device) {
  int major = 0, minor = 0, num_sms = 0;
  check_cuda(kOp, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(kOp, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  check_cuda(kOp, cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  if (major != 9 || minor != 0 || encode_tiled() == nullptr) return 0;
  cudaFuncAttributes attributes{};
  check_cuda(kOp, cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel_for<bf16>(kTiles[0], 1))));
  return attributes.maxThreadsPerBlock < threads_of(1) ? 0 : num_sms;  // 0: built without code for sm_90a
}

int places() {
  static std::mutex mutex;
  static std::map<int, int> known;
  int device = 0;
  check_cuda(kOp, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.try_emplace(device);
  if (entry.second) entry.first->second = places_on(device);
  return entry.first->second;
}

// ---- the choice -----------------------------------------------------------------------------------------------------

Shape shape_of(const LinearParams& p) { return {p.m, p.n, p.k}; }

Plan choose(const LinearParams& p) {
  const Shape shape = class_end(shape_of(p));
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, int64_t, int64_t>, Plan> known;
  const int available = places();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.try_emplace({available, shape.m, shape.n, shape.k});
  if (entry.second) entry.first->second = fastest_plan(shape, available);
  return entry.first->second;
}

bool aligned(const void* p, int64_t stride, DType dtype) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uint64_t>(stride) * size_of(dtype)) % 16 == 0;
}

// ---- the launch -----------------------------------------------------------------------------------------------------

// A row-major matrix of 16-bit elements as [cols / 64, rows, 64], read `num_boxes` boxes of `box_rows` rows at a time.
CUtensorMap map_of(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                   int num_boxes) {
  const cuuint64_t sizes[] = {kBoxK, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(cols / kBoxK)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2, kBoxRowBytes};  // of all dimensions but the first
  const cuuint32_t box[] = {kBoxK, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(num_boxes)};
  const cuuint32_t steps[] = {1, 1, 1};
  const auto type = dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUtensorMap map;
  const CUresult result =
      encode_tiled()(&map, type, 3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PE_CHECK(kOp, result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

}  // namespace

bool stream_gemm_can(const LinearParams& p) {
  const bool shape = p.m >= 1 && p.m <= kMaxRows && p.n % 8 == 0 && p.k % kBoxK == 0 && p.n < (1 << 24) && p.k > 0;
  return shape && p.dtype != DType::kF32 && aligned(p.x, p.x_stride, p.dtype) && aligned(p.weight, p.k, p.dtype) &&
         aligned(p.out, p.out_stride, p.out_dtype) && aligned(p.bias, 0, p.dtype) && places() > 0;
}

bool stream_gemm_fits(const LinearParams& p) {
  return (p.m <= tuning.stream_rows || worthwhile(shape_of(p), p.out_dtype == DType::kF32)) && stream_gemm_can(p);
}

Plan stream_gemm_plan(const LinearParams& p) { return choose(p); }

void stream_gemm(const LinearParams& p, const Plan& plan, Stream stream) {
  const Shape shape = shape_of(p);
  const int groups = groups_of(p.m), stages = stages_of(shape, plan), rows = padded_rows(p.m);
  const Kernel kernel = kernel_of(p.dtype, plan.tile, groups);
  PE_CHECK(kOp, kernel != nullptr && stages >= 2, "no streaming kernel for tiles of " + std::to_string(plan.tile));
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(std::min<int64_t>(div_ceil<int64_t>(p.n, plan.tile), places())));
  config.block = dim3(static_cast<unsigned>(threads_of(groups)));
  config.smem_bytes = static_cast<size_t>(smem_bytes(shape, plan));
  config.stream = stream, config.op = kOp, config.overlap = true;
  Args args{};
  args.out = p.out, args.bias = p.bias, args.out_stride = p.out_stride;
  args.m = static_cast<int>(p.m), args.n = static_cast<int>(p.n), args.num_boxes = static_cast<int>(p.k / kBoxK);
  args.num_prefetched = p.n * p.k * 2 <= kPrefetchedBytes ? static_cast<int>(tuning.prefetched_stages) : 0;
  args.depth = plan.depth, args.num_stages = stages, args.x_rows = rows, args.f32_out = p.out_dtype == DType::kF32;
  launch(config, kernel, map_of(p.weight, p.dtype, p.n, p.k, p.k, plan.tile, plan.depth),
         map_of(p.x, p.dtype, p.m, p.k, p.x_stride, rows, plan.depth), args);
}

void stream_gemm(const LinearParams& p, Stream stream) { stream_gemm(p, stream_gemm_plan(p), stream); }

}  // namespace pe::cuda
