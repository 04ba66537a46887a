// SPDX-License-Identifier: Apache-2.0
// The host's half of the weight-streaming GEMM: which calls it can serve, the tensor maps, the launch.
#include <algorithm>
#include <map>
#include <tuple>

#include "cuda/common/launch.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/gemm/stream_args.h"
#include "cuda/gemm/stream_gemm.h"

namespace pe::cuda {
namespace {

using namespace stream;

constexpr const char* kOp = "linear";

template <typename T>
Kernel kernel_of(const Plan& plan, int groups, bool pairs) {
  return pairs ? kernel_for<T, true>(plan.tile, groups) : kernel_for<T, false>(plan.tile, groups);
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
  check_cuda(kOp,
             cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel_for<bf16, false>(kTiles[0], 1))));
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

Shape shape_of(const LinearParams& p, bool pairs) { return {p.m, p.n, p.k, pairs}; }

Plan choose(const LinearParams& p, bool pairs) {
  const Shape shape = class_end(shape_of(p, pairs));
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, int64_t, int64_t, bool>, Plan> known;
  const int available = places();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.try_emplace({available, shape.m, shape.n, shape.k, pairs});
  if (entry.second) entry.first->second = fastest_plan(shape, available);
  return entry.first->second;
}

bool aligned(const void* p, int64_t stride, DType dtype) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uint64_t>(stride) * size_of(dtype)) % 16 == 0;
}

// ---- the launch -----------------------------------------------------------------------------------------------------

// A tensor of 16-bit elements whose boxes are 64 elements wide; strides in bytes, of all dimensions but the first.
template <size_t kRank>
CUtensorMap map_of(const void* data, DType dtype, const cuuint64_t (&sizes)[kRank],
                   const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank]) {
  const cuuint32_t steps[] = {1, 1, 1, 1};
  static_assert(kRank <= sizeof(steps) / sizeof(steps[0]), "a step for each dimension");
  const auto type = dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUtensorMap map;
  const CUresult result = encode_tiled()(&map, type, static_cast<cuuint32_t>(kRank), const_cast<void*>(data), sizes,
                                         strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PE_CHECK(kOp, result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

// A row-major matrix as [cols / 64, rows, 64], read `num_boxes` boxes of `box_rows` rows at a time.
CUtensorMap map_of_boxes(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                         int num_boxes) {
  const cuuint64_t sizes[] = {kBoxK, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(cols / kBoxK)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2, kBoxRowBytes};
  const cuuint32_t box[] = {kBoxK, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(num_boxes)};
  return map_of(data, dtype, sizes, strides, box);
}

// The same of a matrix of two halves, [cols / 64, 2, rows / 2, 64]: a box has half its rows from either.
CUtensorMap map_of_pairs(const void* data, DType dtype, int64_t rows, int64_t cols, int box_rows, int num_boxes) {
  const cuuint64_t sizes[] = {kBoxK, static_cast<cuuint64_t>(rows / 2), 2, static_cast<cuuint64_t>(cols / kBoxK)};
  const cuuint64_t row_bytes = static_cast<cuuint64_t>(cols) * 2;
  const cuuint64_t strides[] = {row_bytes, row_bytes * sizes[1], kBoxRowBytes};
  const cuuint32_t box[] = {kBoxK, static_cast<cuuint32_t>(box_rows / 2), 2, static_cast<cuuint32_t>(num_boxes)};
  return map_of(data, dtype, sizes, strides, box);
}

}  // namespace

bool stream_gemm_can(const LinearParams& p, bool pairs) {
  const bool shape =
      p.m >= 1 && p.m <= kMaxRows && p.n % (pairs ? 16 : 8) == 0 && p.k % kBoxK == 0 && p.n < (1 << 24) && p.k > 0;
  const bool plain = !pairs || (p.bias == nullptr && p.out_dtype == p.dtype);
  return shape && plain && p.dtype != DType::kF32 && aligned(p.x, p.x_stride, p.dtype) &&
         aligned(p.weight, p.k, p.dtype) && aligned(p.out, p.out_stride, p.out_dtype) && aligned(p.bias, 0, p.dtype) &&
         places() > 0;
}

bool stream_gemm_fits(const LinearParams& p, bool pairs) {
  return (p.m <= tuning.stream_rows || worthwhile(shape_of(p, pairs), p.out_dtype == DType::kF32)) &&
         stream_gemm_can(p, pairs);
}

Plan stream_gemm_plan(const LinearParams& p, bool pairs) { return choose(p, pairs); }

void stream_gemm(const LinearParams& p, const Plan& plan, Stream stream, bool pairs) {
  const Shape shape = shape_of(p, pairs);
  const int groups = groups_of(p.m), stages = stages_of(shape, plan), rows = padded_rows(p.m);
  const Kernel kernel =
      p.dtype == DType::kBF16 ? kernel_of<bf16>(plan, groups, pairs) : kernel_of<f16>(plan, groups, pairs);
  PE_CHECK(kOp, kernel != nullptr && stages >= 2, "no streaming kernel for tiles of " + std::to_string(plan.tile));
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(std::min<int64_t>(div_ceil<int64_t>(p.n, plan.tile), places())));
  config.block = dim3(static_cast<unsigned>(threads_of(groups)));
  config.smem_bytes = static_cast<size_t>(smem_bytes(shape, plan));
  config.stream = stream, config.op = kOp, config.overlap = true;
  Args args{};
  args.out = p.out, args.bias = p.bias, args.out_stride = p.out_stride;
  args.m = static_cast<int>(p.m), args.n = static_cast<int>(pairs ? p.n / 2 : p.n);
  args.num_boxes = static_cast<int>(p.k / kBoxK);
  args.num_prefetched = p.n * p.k * 2 <= kPrefetchedBytes ? static_cast<int>(tuning.prefetched_stages) : 0;
  args.depth = plan.depth, args.num_stages = stages, args.x_rows = rows, args.f32_out = p.out_dtype == DType::kF32;
  const CUtensorMap weight_map = pairs ? map_of_pairs(p.weight, p.dtype, p.n, p.k, plan.tile, plan.depth)
                                       : map_of_boxes(p.weight, p.dtype, p.n, p.k, p.k, plan.tile, plan.depth);
  launch(config, kernel, weight_map, map_of_boxes(p.x, p.dtype, p.m, p.k, p.x_stride, rows, plan.depth), args);
}

void stream_gemm(const LinearParams& p, Stream stream, bool pairs) {
  stream_gemm(p, stream_gemm_plan(p, pairs), stream, pairs);
}

}  // namespace pe::cuda
