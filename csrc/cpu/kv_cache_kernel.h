// SPDX-License-Identifier: Apache-2.0
// QK-norm, RoPE and the KV write of a run of tokens, written over Float.
//
// A head is widened to fp32 once, normalised and rotated there, and rounded once. It is 256 elements at most, so it
// lives in the L1; the memory traffic is the row of qkv, read and (for q) written, and the cache rows.
#pragma once
#include <cmath>
#include <type_traits>

#include "kv_cache_rope.h"
#include "math_vector.h"

namespace pe::cpu {
namespace {

constexpr int64_t kWidth = Float::kWidth;
constexpr int64_t kMaxHeadDim = 256;

// x = x / rms(x) * weight. The sum's order depends on dim alone.
template <typename T>
PE_INLINE void normalise(float* x, const T* weight, int64_t dim, float eps) {
  Float squares = Float::splat(0.0f);
  for (int64_t d = 0; d < dim; d += kWidth) {
    const Float v = Float::load(x + d);
    squares = fma(v, v, squares);
  }
  const Float scale = Float::splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps));
  for (int64_t d = 0; d < dim; d += kWidth)
    (Float::load(x + d) * scale * Float::load(weight + d, dim - d)).store(x + d);
}

// cos_sin: half cosines, then half sines.
PE_INLINE void rotate(float* x, const float* cos_sin, int64_t half) {
  int64_t i = 0;
  for (; i + kWidth <= half; i += kWidth) {
    const Float a = Float::load(x + i), b = Float::load(x + half + i);
    const Float c = Float::load(cos_sin + i), s = Float::load(cos_sin + half + i);
    fnma(b, s, a * c).store(x + i);
    fma(a, s, b * c).store(x + half + i);
  }
  for (; i < half; ++i) {  // a tail shorter than a vector: the same arithmetic on one lane
    const Float a = Float::splat(x[i]), b = Float::splat(x[half + i]);
    const Float c = Float::splat(cos_sin[i]), s = Float::splat(cos_sin[half + i]);
    x[i] = fnma(b, s, a * c).first();
    x[half + i] = fma(a, s, b * c).first();
  }
}

// x = the head in fp32, normalised and rotated.
template <typename T>
PE_INLINE void transform_head(const RopeWriteKvParams& p, const T* in, const void* norm, const float* cos_sin,
                              float* x) {
  const int64_t dim = p.kv.head_dim;
  for (int64_t d = 0; d < dim; d += kWidth) Float::load(in + d, dim - d).store(x + d);
  if (norm) normalise(x, static_cast<const T*>(norm), dim, p.norm_eps);
  if (cos_sin) rotate(x, cos_sin, p.rotary_dim / 2);
}

template <typename T>
PE_INLINE void store_head(const float* x, int64_t dim, T* out) {
  for (int64_t d = 0; d < dim; d += kWidth) Float::load(x + d).store(out + d, dim - d);
}
// To a cache that may have scales.
template <typename T>
PE_INLINE void store_scaled(const float* x, int64_t dim, const float* scales, int64_t head, T* out) {
  if (!scales) return store_head(x, dim, out);
  const Float scale = Float::splat(scales[head]);
  for (int64_t d = 0; d < dim; d += kWidth) (Float::load(x + d) / scale).store(out + d, dim - d);
}

// T is what is computed on, Stored what the cache holds.
template <typename T, typename Stored>
void rope_tokens(const RopeWriteKvParams& p, int64_t token_begin, int64_t token_end) {
  alignas(64) float x[kMaxHeadDim];
  const int64_t dim = p.kv.head_dim, num_kv_heads = p.kv.num_kv_heads;
  for (int64_t t = token_begin; t < token_end; ++t) {
    const int64_t slot = p.slot_mapping[t];
    if (slot < 0) continue;
    T* q = static_cast<T*>(p.qkv) + t * p.qkv_stride;
    const T* k = q + p.num_heads * dim;
    const T* v = k + num_kv_heads * dim;
    const int64_t place = slot / p.kv.block_size * p.kv.block_stride + slot % p.kv.block_size * p.kv.token_stride;
    const float* cos_sin = p.cos_sin ? p.cos_sin + int64_t{p.positions[t]} * p.rotary_dim : nullptr;
    if (cos_sin || p.q_norm) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        transform_head(p, q + h * dim, p.q_norm, cos_sin, x);
        store_head(x, dim, q + h * dim);
      }
    }
    for (int64_t h = 0; h < num_kv_heads; ++h) {
      const int64_t at = place + h * p.kv.head_stride;
      transform_head(p, k + h * dim, p.k_norm, cos_sin, x);
      store_scaled(x, dim, p.kv.k_scale, h, static_cast<Stored*>(p.kv.k) + at);
      Stored* v_out = static_cast<Stored*>(p.kv.v) + at;
      if constexpr (std::is_same_v<T, Stored>) {
        std::memcpy(v_out, v + h * dim, sizeof(T) * dim);
      } else {
        transform_head(p, v + h * dim, nullptr, nullptr, x);
        store_scaled(x, dim, p.kv.v_scale, h, v_out);
      }
    }
  }
}

template <typename T>
PE_INLINE RopeKernel rope_kernel_storing(DType stored) {
  return stored == DType::kF8E4M3 ? rope_tokens<T, F8> : rope_tokens<T, T>;
}

PE_INLINE RopeKernel rope_kernel_for(DType dtype, DType stored) {
  if (dtype == DType::kF32) return rope_kernel_storing<float>(stored);
  if (dtype == DType::kF16) return rope_kernel_storing<F16>(stored);
  return rope_kernel_storing<BF16>(stored);
}

}  // namespace
}  // namespace pe::cpu
