// SPDX-License-Identifier: Apache-2.0
// What happens to q, k and v between their projection and attention: QK-norm, RoPE and the write into the KV cache.
// qkv[T, (H + 2 HK) * D] (q rewritten), positions[T], slots[T] (-1: skipped), cos_sin[P, R] -> k, v cache (T or e4m3)
// grid (T, ceil((H + 2 HK) / heads per CTA)) · block 128 · tile: one head by D / 2 / vector threads, 2 vectors each
// traffic: T * (2 H + 4 HK) * D elements, cos_sin through the L1 -> HBM-bound, at decode sizes launch-bound
// floor: T=8192, H=32, HK=8, D=128, bf16: 201 MB = 67 us at 3.0 TB/s; not yet measured
//
// A lane of a head holds two vectors: of the rotated part one of the first half and its partner of the second, so that
// the rotation stays inside the thread; of the rest two neighbours. The norm's sum runs over a thread's two vectors,
// then over the head's lanes: its order depends on head_dim and rotary_dim alone.
#include "cuda/common/fp8.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/common/warp.cuh"
#include "pe/kv_cache.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "rope_write_kv";
constexpr int kThreads = 128;

struct Args {
  void* qkv;
  const int32_t* positions;
  const int64_t* slot_mapping;
  const float* cos_sin;
  const void* q_norm;
  const void* k_norm;
  void* k;
  void* v;
  const float* k_scale;
  const float* v_scale;
  int64_t qkv_stride, block_stride, head_stride, token_stride;
  int block_shift;  // log2(block_size)
  int num_heads, num_kv_heads, head_dim, rotary_dim;
  float eps;
};

enum class Part { kQ, kK, kV };

template <typename T>
struct HeadVectors {  // a thread's share of one head, in fp32
  float a[kVec<T>], b[kVec<T>];
};

template <typename T, int kLanes>
__device__ __forceinline__ void norm_head(HeadVectors<T>& x, const T* weight, int a_at, int b_at, const Args& p) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) sum = fmaf(x.a[j], x.a[j], sum);
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) sum = fmaf(x.b[j], x.b[j], sum);
  sum = warp_sum<kLanes>(sum);  // every lane of the warp, also those whose head needs no norm
  if (weight == nullptr) return;
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(p.head_dim) + p.eps);
  float wa[kVec<T>], wb[kVec<T>];
  unpack<T>(load16_const(weight + a_at), wa);
  unpack<T>(load16_const(weight + b_at), wb);
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) {
    x.a[j] = x.a[j] * scale * wa[j];
    x.b[j] = x.b[j] * scale * wb[j];
  }
}

// (a, b) -> (a cos - b sin, b cos + a sin)
template <typename T>
__device__ __forceinline__ void rotate(HeadVectors<T>& x, const float* cos, const float* sin) {
#pragma unroll
  for (int j = 0; j < kVec<T>; j += 4) {
    float c[4], s[4];
    unpack<float>(load16_const(cos + j), c);
    unpack<float>(load16_const(sin + j), s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = x.a[j + i], b = x.b[j + i];
      x.a[j + i] = a * c[i] - b * s[i];
      x.b[j + i] = b * c[i] + a * s[i];
    }
  }
}

// kVec<T> elements, as a cache of e4m3 holds them.
template <int kCount>
__device__ __forceinline__ void store_fp8(fp8* to, const float (&x)[kCount], float scale) {
  uint32_t quads[kCount / 4];
#pragma unroll
  for (int j = 0; j < kCount; j += 4)
    quads[j / 4] = narrow4_fp8(x[j] / scale, x[j + 1] / scale, x[j + 2] / scale, x[j + 3] / scale);
  if constexpr (kCount == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(quads[0], quads[1]);
  } else {
    *reinterpret_cast<uint32_t*>(to) = quads[0];
  }
}

template <typename T, typename Stored>
__device__ __forceinline__ void store_head(const Args& p, Part part, int kv_head, int64_t slot, const HeadVectors<T>& x,
                                           int a_at, int b_at) {
  const int64_t block = slot >> p.block_shift, offset = slot & ((int64_t{1} << p.block_shift) - 1);
  Stored* const to = static_cast<Stored*>(part == Part::kK ? p.k : p.v) + block * p.block_stride +
                     kv_head * p.head_stride + offset * p.token_stride;
  if constexpr (std::is_same_v<Stored, fp8>) {
    const float* scales = part == Part::kK ? p.k_scale : p.v_scale;
    const float scale = scales == nullptr ? 1.0f : __ldg(scales + kv_head);
    store_fp8(to + a_at, x.a, scale);
    store_fp8(to + b_at, x.b, scale);
  } else {
    store16(to + a_at, pack<T>(x.a));
    store16(to + b_at, pack<T>(x.b));
  }
}

template <typename T, typename Stored, int kLanes>
__global__ void __launch_bounds__(kThreads) rope_write_kv_kernel(Args p) {
  const int64_t token = blockIdx.x;
  const int lane = lane_id() % kLanes;
  const int head = static_cast<int>(blockIdx.y * (kThreads / kLanes) + threadIdx.x / kLanes);
  const int half = p.cos_sin == nullptr ? 0 : p.rotary_dim / (2 * kVec<T>);
  const int a_at = (lane < half ? lane : 2 * lane) * kVec<T>;
  const int b_at = lane < half ? a_at + half * kVec<T> : a_at + kVec<T>;
  const bool active = head < p.num_heads + 2 * p.num_kv_heads && b_at < p.head_dim;
  const Part part = head < p.num_heads ? Part::kQ : head < p.num_heads + p.num_kv_heads ? Part::kK : Part::kV;
  T* const source = static_cast<T*>(p.qkv) + token * p.qkv_stride + int64_t{head} * p.head_dim;

  wait_for_predecessor();
  release_successor();  // behind the wait: attention reads its plan meanwhile (PagedAttentionParams::settled)
  // All that does not depend on another load is on its way before the first is used, also for padding.
  const int64_t slot = p.slot_mapping[token];
  const int64_t position = p.cos_sin == nullptr ? 0 : p.positions[token];
  uint4 a{}, b{};
  if (active) {
    a = load16(source + a_at);
    b = load16(source + b_at);
  }
  if (slot < 0) return;  // the whole CTA
  HeadVectors<T> x;
  unpack<T>(a, x.a);
  unpack<T>(b, x.b);
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    const void* weight = !active || part == Part::kV ? nullptr : part == Part::kQ ? p.q_norm : p.k_norm;
    norm_head<T, kLanes>(x, static_cast<const T*>(weight), a_at, b_at, p);
  }
  if (!active) return;
  if (lane < half && part != Part::kV) {
    const float* row = p.cos_sin + position * p.rotary_dim + lane * kVec<T>;
    rotate<T>(x, row, row + p.rotary_dim / 2);
  }

  if (part != Part::kQ) {
    const int kv_head = part == Part::kK ? head - p.num_heads : head - p.num_heads - p.num_kv_heads;
    return store_head<T, Stored>(p, part, kv_head, slot, x, a_at, b_at);
  }
  store16(source + a_at, pack<T>(x.a));
  store16(source + b_at, pack<T>(x.b));
}

template <typename T, typename Stored, int kLanes>
void launch_heads(const Args& args, int64_t num_tokens, Stream stream) {
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(num_tokens), static_cast<unsigned>(div_ceil(heads, kThreads / kLanes)));
  launch_overlapping(rope_write_kv_kernel<T, Stored, kLanes>, grid, dim3(kThreads), 0, stream, kOp, args);
}

template <typename T, typename Stored>
void launch_for_head_dim(const Args& args, int64_t num_tokens, Stream stream) {
  const int lanes = args.head_dim / (2 * kVec<T>);
  if (lanes <= 4) return launch_heads<T, Stored, 4>(args, num_tokens, stream);
  if (lanes <= 8) return launch_heads<T, Stored, 8>(args, num_tokens, stream);
  if (lanes <= 16) return launch_heads<T, Stored, 16>(args, num_tokens, stream);
  if (lanes <= 32) return launch_heads<T, Stored, 32>(args, num_tokens, stream);
  throw_error(kOp, "head_dim " + std::to_string(args.head_dim) + " unsupported (at most " +
                       std::to_string(64 * kVec<T>) + " for this dtype)");
}

void check(const RopeWriteKvParams& p) {
  const PagedKV& kv = p.kv;
  const int pair = static_cast<int>(32 / size_of(p.dtype));  // elements of two vectors
  PE_CHECK(kOp, kv.dtype == p.dtype || kv.dtype == DType::kF8E4M3,
           std::string("the cache must have qkv's dtype ") + name_of(p.dtype) + " or f8e4m3, got " + name_of(kv.dtype));
  PE_CHECK(kOp, kv.dtype == DType::kF8E4M3 || (kv.k_scale == nullptr && kv.v_scale == nullptr),
           "k_scale and v_scale are of a cache in f8e4m3");
  PE_CHECK(kOp, kv.block_size > 0 && (kv.block_size & (kv.block_size - 1)) == 0,
           "block_size must be a power of two, got " + std::to_string(kv.block_size));
  PE_CHECK(kOp, kv.head_dim > 0 && kv.head_dim % pair == 0,
           "head_dim must be a positive multiple of " + std::to_string(pair) + ", got " + std::to_string(kv.head_dim));
  PE_CHECK(kOp, p.cos_sin == nullptr || (p.rotary_dim > 0 && p.rotary_dim % pair == 0 && p.rotary_dim <= kv.head_dim),
           "rotary_dim must be a positive multiple of " + std::to_string(pair) + " up to head_dim, got " +
               std::to_string(p.rotary_dim));
  PE_CHECK(kOp, p.cos_sin == nullptr || p.positions != nullptr, "cos_sin without positions");
  check_aligned16(kOp, "qkv", p.qkv, p.qkv_stride, p.dtype);
  check_aligned16(kOp, "cos_sin", p.cos_sin, 0, DType::kF32);
  check_aligned16(kOp, "q_norm", p.q_norm, 0, p.dtype);
  check_aligned16(kOp, "k_norm", p.k_norm, 0, p.dtype);
  check_aligned16(kOp, "block", kv.k, kv.block_stride, kv.dtype);
  check_aligned16(kOp, "head", kv.v, kv.head_stride, kv.dtype);
  check_aligned16(kOp, "token", kv.v, kv.token_stride, kv.dtype);
}

}  // namespace

void rope_write_kv(const RopeWriteKvParams& p, Stream stream) {
  check(p);
  int block_shift = 0;
  while ((1 << block_shift) < p.kv.block_size) ++block_shift;
  const Args args{p.qkv,
                  p.positions,
                  p.slot_mapping,
                  p.cos_sin,
                  p.q_norm,
                  p.k_norm,
                  p.kv.k,
                  p.kv.v,
                  p.kv.k_scale,
                  p.kv.v_scale,
                  p.qkv_stride,
                  p.kv.block_stride,
                  p.kv.head_stride,
                  p.kv.token_stride,
                  block_shift,
                  p.num_heads,
                  p.kv.num_kv_heads,
                  p.kv.head_dim,
                  p.rotary_dim,
                  p.norm_eps};
  dispatch_dtype(kOp, p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.kv.dtype == DType::kF8E4M3) return launch_for_head_dim<T, fp8>(args, p.num_tokens, stream);
    launch_for_head_dim<T, T>(args, p.num_tokens, stream);
  });
}

}  // namespace pe::cuda
