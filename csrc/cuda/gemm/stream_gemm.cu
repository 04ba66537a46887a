// SPDX-License-Identifier: Apache-2.0
// The host's half of the weight-streaming GEMM: which calls it can serve, the tensor maps, the launch.
#include <array>
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

// Blocks that run at once, one per SM, in clusters of each size; 0 where the kernel cannot run.
using Places = std::array<int, std::size(kClusters)>;

int places_in_clusters(Kernel kernel, int cluster) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(threads_of(1));
  config.dynamicSmemBytes = kFullRing;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int num_clusters = 0;
  check_cuda(kOp, cudaOccupancyMaxActiveClusters(&num_clusters, reinterpret_cast<const void*>(kernel), &config));
  return num_clusters * cluster;
}

Places places_on(int device) {
  Places places{};
  int major = 0, minor = 0;
  check_cuda(kOp, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(kOp, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0 || encode_tiled() == nullptr) return places;
  const Kernel kernel = kernel_for<bf16>(kTiles[0], 1);
  cudaFuncAttributes attributes{};
  check_cuda(kOp, cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
  if (attributes.maxThreadsPerBlock < threads_of(1)) return places;  // built without code for sm_90a
  allow_smem(kOp, reinterpret_cast<const void*>(kernel), kFullRing);
  for (size_t i = 0; i < places.size(); ++i) places[i] = places_in_clusters(kernel, kClusters[i]);
  return places;
}

const Places& places() {
  static std::mutex mutex;
  static std::map<int, Places> known;  // nodes of a map stay where they are
  int device = 0;
  check_cuda(kOp, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, places_on(device)).first->second;
}

// ---- the choice -----------------------------------------------------------------------------------------------------

Shape shape_of(const LinearParams& p) { return {p.m, p.n, p.k}; }

struct Choice {
  Plan plan;
  double ns = 1e30;
};

Choice search(const Shape& shape, const Places& places) {
  Choice best;
  for (size_t i = 0; i < std::size(kClusters); ++i) {
    for (const int tile : kTiles) {
      Plan plan{tile, kClusters[i]};
      if (!has_kernel(tile, groups_of(shape.m)) || places[i] == 0 || stages_of(shape, plan) < 2) continue;
      const double ns = model_ns(shape, plan, places[i]);
      if (ns >= best.ns) continue;
      plan.ring_bytes = ring_for(shape, plan);
      best = {plan, ns};
    }
  }
  return best;
}

Choice choose(Shape shape) {
  shape.m = *std::lower_bound(std::begin(kClassEnds), std::end(kClassEnds), shape.m);
  static std::mutex mutex;
  static std::map<std::tuple<const Places*, int64_t, int64_t, int64_t>, Choice> known;
  const Places& available = places();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.try_emplace({&available, shape.m, shape.n, shape.k});
  if (entry.second) entry.first->second = search(shape, available);
  return entry.first->second;
}

bool aligned(const void* p, int64_t stride, DType dtype) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uint64_t>(stride) * size_of(dtype)) % 16 == 0;
}

// ---- the launch -----------------------------------------------------------------------------------------------------

// Boxes of `box_rows` rows x 64 columns of a row-major matrix of 16-bit elements.
CUtensorMap map_of(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};  // bytes, of all dimensions but the first
  const cuuint32_t box[] = {kStageK, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const auto type = dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUtensorMap map;
  const CUresult result =
      encode_tiled()(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PE_CHECK(kOp, result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

int num_blocks(const LinearParams& p, const Plan& plan) {
  const auto at = std::find(std::begin(kClusters), std::end(kClusters), plan.cluster);
  PE_CHECK(kOp, at != std::end(kClusters), "no clusters of " + std::to_string(plan.cluster));
  const int64_t tiles = round_up<int64_t>(div_ceil<int64_t>(p.n, plan.tile), plan.cluster);
  return static_cast<int>(std::min<int64_t>(tiles, places()[at - std::begin(kClusters)]));
}

}  // namespace

bool stream_gemm_can(const LinearParams& p) {
  const bool shape = p.m >= 1 && p.m <= kMaxRows && p.n % 8 == 0 && p.k % kStageK == 0 && p.n < (1 << 24) && p.k > 0;
  return shape && p.dtype != DType::kF32 && aligned(p.x, p.x_stride, p.dtype) && aligned(p.weight, p.k, p.dtype) &&
         aligned(p.out, p.out_stride, p.out_dtype) && aligned(p.bias, 0, p.dtype) && places()[0] > 0;
}

bool stream_gemm_fits(const LinearParams& p) {
  return (p.m <= tuning.stream_rows || worthwhile(shape_of(p))) && stream_gemm_can(p);
}

Plan stream_gemm_plan(const LinearParams& p) { return choose(shape_of(p)).plan; }

void stream_gemm(const LinearParams& p, const Plan& plan, Stream stream) {
  const Shape shape = shape_of(p);
  const int groups = groups_of(p.m), stages = stages_of(shape, plan), rows = padded_rows(p.m, plan.cluster);
  const Kernel kernel = kernel_of(p.dtype, plan.tile, groups);
  PE_CHECK(kOp, kernel != nullptr && stages >= 2, "no streaming kernel for tiles of " + std::to_string(plan.tile));
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(num_blocks(p, plan)));
  config.block = dim3(static_cast<unsigned>(threads_of(groups)));
  config.smem_bytes = static_cast<size_t>(smem_bytes(shape, plan));
  config.stream = stream, config.op = kOp, config.overlap = true, config.cluster = static_cast<unsigned>(plan.cluster);
  Args args{};
  args.out = p.out, args.bias = p.bias, args.out_stride = p.out_stride;
  args.m = static_cast<int>(p.m), args.n = static_cast<int>(p.n), args.num_k = static_cast<int>(p.k / kStageK);
  args.num_prefetched = p.n * p.k * 2 <= kPrefetchedBytes ? static_cast<int>(tuning.prefetched_stages) : 0;
  args.num_stages = stages, args.x_rows = rows, args.cluster = plan.cluster, args.f32_out = p.out_dtype == DType::kF32;
  launch(config, kernel, map_of(p.weight, p.dtype, p.n, p.k, p.k, plan.tile),
         map_of(p.x, p.dtype, p.m, p.k, p.x_stride, rows / plan.cluster), args);
}

void stream_gemm(const LinearParams& p, Stream stream) { stream_gemm(p, stream_gemm_plan(p), stream); }

}  // namespace pe::cuda
