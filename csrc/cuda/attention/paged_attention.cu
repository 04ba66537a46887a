// SPDX-License-Identifier: Apache-2.0
// Host side of paged attention: checks, the device's geometry, the plan's launch and the dispatch by head_dim.
#include <cmath>
#include <initializer_list>
#include <mutex>
#include <string>

#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/plan.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"

namespace pe::cuda {
namespace attention {
namespace {

constexpr const char* kOp = "paged_attention";

struct HeadDim {
  int dim;
  bool fp8;  // the cache
  int deep_slots;
  size_t deep_smem_bytes, by_cta_smem_bytes, by_boxes_smem_bytes;  // 0: not for this head_dim
  void (*launch)(const RunArgs&, const KvMaps&, DType, int num_ctas, Stream);
};
template <int kDim, bool kFp8 = false>
constexpr HeadDim head_dim() {
  using Format = KvFormat<std::conditional_t<kFp8, Fp8<bf16>, bf16>, kDim>;
  constexpr int kSlots = kDeepSlots<Format::kWords>;
  HeadDim h{kDim,
            kFp8,
            kSlots,
            Format::smem_bytes(kSlots, false, false),
            Format::kByCta ? Format::smem_bytes(kSlots, true, false) : size_t{0},
            Format::kByBoxes ? Format::smem_bytes(kSlots, false, true) : size_t{0},
            nullptr};
  if constexpr (kFp8) {
    h.launch = launch_attention_fp8<kDim>;
  } else {
    h.launch = launch_attention<kDim>;
  }
  return h;
}
constexpr HeadDim kHeadDims[] = {head_dim<64>(),  head_dim<80>(),       head_dim<96>(),       head_dim<128>(),
                                 head_dim<256>(), head_dim<64, true>(), head_dim<128, true>()};

const HeadDim& find_head_dim(const PagedKV& kv) {
  const bool fp8 = kv.dtype == DType::kF8E4M3;
  std::string have;
  for (const HeadDim& h : kHeadDims) {
    if (h.fp8 != fp8) continue;
    if (h.dim == kv.head_dim) return h;
    have += (have.empty() ? "" : ", ") + std::to_string(h.dim);
  }
  throw_error(kOp, "head_dim " + std::to_string(kv.head_dim) + " unsupported" + (fp8 ? " with a cache in f8e4m3" : "") +
                       " (have " + have + ")");
}

void check_shape(const PagedAttentionParams& p) {
  PE_CHECK(kOp, p.num_heads > 0 && p.kv.num_kv_heads > 0 && p.num_heads % p.kv.num_kv_heads == 0,
           "num_heads must be a multiple of num_kv_heads, got " + std::to_string(p.num_heads) + " and " +
               std::to_string(p.kv.num_kv_heads));
  PE_CHECK(kOp, p.num_seqs >= 0 && p.num_tokens >= 0 && p.max_seq_len >= 0 && p.window >= 0,
           "num_seqs, num_tokens, max_seq_len and window must not be negative, got " + std::to_string(p.num_seqs) +
               ", " + std::to_string(p.num_tokens) + ", " + std::to_string(p.max_seq_len) + ", " +
               std::to_string(p.window));
  const int64_t rows = p.num_tokens * (p.num_heads / p.kv.num_kv_heads);
  PE_CHECK(kOp, rows < (int64_t{1} << 31),
           "num_tokens x query heads per kv head must fit 31 bits, got " + std::to_string(rows));
  find_head_dim(p.kv);
}

void check_strides(const char* name, const void* data, std::initializer_list<int64_t> strides, DType dtype) {
  for (const int64_t stride : strides) check_aligned16(kOp, name, data, stride, dtype);
}

void check_block_size(int size) {
  PE_CHECK(kOp, size >= 16 && size <= 256 && (size & (size - 1)) == 0,
           "block_size must be a power of two in 16 .. 256, got " + std::to_string(size));
}
int log2_of(int power) {
  int log = 0;
  while ((1 << log) < power) ++log;
  return log;
}

void check_params(const PagedAttentionParams& p) {
  check_shape(p);
  PE_CHECK(kOp, p.dtype == DType::kBF16 || p.dtype == DType::kF16,
           std::string("dtype ") + name_of(p.dtype) + " unsupported on CUDA (have bf16, f16; f32 runs on the CPU)");
  const bool fp8 = p.kv.dtype == DType::kF8E4M3;
  PE_CHECK(kOp, p.kv.dtype == p.dtype || fp8,
           std::string("q is ") + name_of(p.dtype) + " but the cache is " + name_of(p.kv.dtype) +
               "; they must be equal, or the cache f8e4m3");
  PE_CHECK(kOp, fp8 || (p.kv.k_scale == nullptr && p.kv.v_scale == nullptr),
           "k_scale and v_scale are of a cache in f8e4m3");
  check_block_size(p.kv.block_size);
  PE_CHECK(kOp, p.turn == 0 || p.turn == 1, "turn must be 0 or 1, got " + std::to_string(p.turn));
  PE_CHECK(kOp, p.scale > 0 && std::isfinite(p.scale), "scale must be positive, got " + std::to_string(p.scale));
  check_strides("q", p.q, {p.q_token_stride, p.q_head_stride}, p.dtype);
  check_strides("out", p.out, {p.out_token_stride, p.out_head_stride}, p.dtype);
  check_strides("k", p.kv.k, {p.kv.block_stride, p.kv.head_stride, p.kv.token_stride}, p.kv.dtype);
  check_strides("v", p.kv.v, {}, p.kv.dtype);
  PE_CHECK(kOp, reinterpret_cast<uintptr_t>(p.kv.v) % 16 == 0, "v must be 16-byte aligned");
}

void check_room(const char* name, const Workspace& w, size_t need) {
  PE_CHECK(kOp, w.bytes >= need && (need == 0 || w.data != nullptr),
           std::string(name) + " needs " + std::to_string(need) + " bytes, got " + std::to_string(w.bytes));
  PE_CHECK(kOp, reinterpret_cast<uintptr_t>(w.data) % 128 == 0, std::string(name) + " must be 128-byte aligned");
}

size_t partial_bytes(const PagedAttentionParams& p) {
  return static_cast<size_t>(partial_rows(p) * partial_row_bytes(p));
}

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, attribute, device);
  PE_CHECK(kOp, error == cudaSuccess, std::string("cannot query the GPU: ") + cudaGetErrorString(error));
  return value;
}

#if defined(PE_SIMT)
bool has_copy_engine(int) { return true; }
#else
// The GPU has one, and this build has code for it.
bool has_copy_engine(int device) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor, device) < 9) return false;
  PE_CHECK(kOp, encode_tiled() != nullptr, "needs a driver that encodes tensor maps: CUDA 12 or later");
  cudaFuncAttributes attributes{};
  check_cuda(kOp, cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(plan_kernel)));
  return attributes.binaryVersion >= 90;
}
#endif

// One CTA per SM; the deep rings where the shared memory allows. Read once per device.
Geometry device_geometry(const PagedAttentionParams& p) {
  constexpr int kMaxDevices = 64;
  static std::mutex mutex;
  static struct {
    int num_sms, smem_bytes;
    bool has_copy_engine;
  } known[kMaxDevices];
  int device = -1;
  PE_CHECK(kOp, cudaGetDevice(&device) == cudaSuccess && device >= 0 && device < kMaxDevices,
           "no usable GPU (current device " + std::to_string(device) + ")");
  const std::lock_guard<std::mutex> lock(mutex);
  auto& d = known[device];
  if (d.num_sms == 0) {
    d.smem_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    d.num_sms = device_attribute(cudaDevAttrMultiProcessorCount, device);
    d.has_copy_engine = has_copy_engine(device);
  }
  const HeadDim& head_dim = find_head_dim(p.kv);
  const bool deep = static_cast<size_t>(d.smem_bytes) >= head_dim.deep_smem_bytes;
#if defined(PE_SIMT)
  constexpr bool kAllResident = false;  // the emulator runs one block after another
#else
  constexpr bool kAllResident = true;
#endif
  const auto fits = [&](size_t bytes) { return bytes != 0 && static_cast<size_t>(d.smem_bytes) >= bytes; };
  const bool by_cta = fits(head_dim.by_cta_smem_bytes);
  const bool by_boxes = d.has_copy_engine && fits(head_dim.by_boxes_smem_bytes);
  return {d.num_sms, deep ? head_dim.deep_slots : kShallowSlots, kAllResident, by_cta, by_boxes, true};
}

Plan open_plan(const PagedAttentionParams& p, const Geometry& geometry, const Workspace& w) {
  const PlanBounds bounds = plan_bounds(p, geometry);
  Plan plan;
  check_room("plan", w, lay_out(bounds, nullptr, &plan));
  lay_out(bounds, w.data, &plan);
  return plan;
}

RunArgs run_args(const PagedAttentionParams& p, const Geometry& geometry, const Plan& plan, const Workspace& w) {
  RunArgs a{};
  a.plan = plan;
  a.out = p.out;
  a.q = p.q;
  a.k = p.kv.k;
  a.v = p.kv.v;
  a.block_tables = p.block_tables;
  a.table_rows = p.table_rows;
  a.query_start = p.query_start;
  a.seq_lens = p.seq_lens;
  a.partial_acc = static_cast<float*>(w.data);
  a.partial_sum = a.partial_acc + partial_rows(p) * p.kv.num_kv_heads * p.kv.head_dim;
  a.out_token_stride = p.out_token_stride;
  a.out_head_stride = p.out_head_stride;
  a.q_token_stride = p.q_token_stride;
  a.q_head_stride = p.q_head_stride;
  const int64_t word = 2 / static_cast<int64_t>(size_of(p.kv.dtype));  // elements
  a.block_stride = p.kv.block_stride / word;
  a.head_stride = p.kv.head_stride / word;
  a.token_stride = p.kv.token_stride / word;
  a.block_table_stride = p.block_table_stride;
  a.block_shift = log2_of(p.kv.block_size);
  a.group = p.num_heads / p.kv.num_kv_heads;
  a.num_kv_heads = p.kv.num_kv_heads;
  a.window = p.window;
  a.num_slots = geometry.num_slots;
  a.k_scale = p.kv.k_scale;
  a.v_scale = p.kv.v_scale;
  a.scale_log2 = p.scale * 1.44269504088896340736f;
  a.spread = geometry.spread;
  a.by_cta = geometry.by_cta;
  a.by_boxes = geometry.by_boxes;
  a.settled = p.settled;
  a.turn = p.turn;
  return a;
}

}  // namespace

size_t plan_bytes(const PagedAttentionParams& p, const Geometry& geometry) {
  Plan plan;
  return lay_out(plan_bounds(p, geometry), nullptr, &plan);
}

void plan(const PagedAttentionParams& p, const Geometry& geometry, Workspace w, Stream stream) {
  check_shape(p);
  check_block_size(p.kv.block_size);
  PlanArgs a{};
  a.plan = open_plan(p, geometry, w);
  a.query_start = p.query_start;
  a.seq_lens = p.seq_lens;
  a.block_tables = p.block_tables;
  a.table_rows = p.table_rows;
  a.block_table_stride = p.block_table_stride;
  a.num_split_partial_rows = split_partial_rows(p);
  a.num_shared_partial_rows = shared_partial_rows(p);
  a.num_seqs = static_cast<int32_t>(p.num_seqs);
  a.num_kv_heads = p.kv.num_kv_heads;
  a.group = p.num_heads / p.kv.num_kv_heads;
  a.window = p.window;
  a.num_ctas = geometry.num_ctas;
  a.block_shift = log2_of(p.kv.block_size);
  a.by_cta = geometry.by_cta;
  a.shares = geometry.shares && p.block_tables != nullptr && p.num_seqs >= kMinSharers;
  a.by_boxes = geometry.by_boxes;
  launch_overlapping(plan_kernel, dim3(1), dim3(kPlanThreads), 0, stream, "attention_plan", a);
}

void run(const PagedAttentionParams& p, const Geometry& geometry, Workspace plan, Workspace w, Stream stream) {
  check_params(p);
  if (p.num_seqs == 0 || p.num_tokens == 0) return;
  const Plan lists = open_plan(p, geometry, plan);
  check_room("workspace", w, partial_bytes(p));
  const KvMaps maps = geometry.by_boxes ? make_kv_maps(p.kv) : KvMaps{};
  find_head_dim(p.kv).launch(run_args(p, geometry, lists, w), maps, p.dtype, geometry.num_ctas, stream);
}

}  // namespace attention

size_t attention_plan_bytes(const PagedAttentionParams& p) {
  attention::check_shape(p);
  return attention::plan_bytes(p, attention::device_geometry(p));
}
size_t attention_workspace_bytes(const PagedAttentionParams& p) {
  attention::check_shape(p);
  return attention::partial_bytes(p);
}
void attention_plan(const PagedAttentionParams& p, Workspace plan, Stream stream) {
  attention::check_shape(p);
  attention::plan(p, attention::device_geometry(p), plan, stream);
}
void paged_attention(const PagedAttentionParams& p, Workspace plan, Workspace workspace, Stream stream) {
  attention::check_params(p);
  attention::run(p, attention::device_geometry(p), plan, workspace, stream);
}

}  // namespace pe::cuda
