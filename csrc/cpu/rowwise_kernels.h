// SPDX-License-Identifier: Apache-2.0
// The row kernels, written once over a vector type (simd.h) and compiled once per instruction set. Internal linkage:
// see linear_blocked.h for why.
#pragma once
#include <cmath>

#include "rowwise.h"
#include "simd.h"

namespace pe::cpu {
namespace {

// Calls f(offset, count) for each vector of a row; count is Vector::kWidth but in the last.
template <typename Vector, typename F>
inline void for_each_vector(int64_t cols, F f) {
  int64_t i = 0;
  for (; i + Vector::kWidth <= cols; i += Vector::kWidth) f(i, int64_t{Vector::kWidth});
  if (i < cols) f(i, cols - i);
}

template <typename Vector, typename T>
inline Vector load_up_to(const T* p, int64_t count) {
  return count == Vector::kWidth ? Vector::load(p) : Vector::load(p, count);
}
template <typename Vector, typename T>
inline void store_up_to(T* p, Vector v, int64_t count) {
  count == Vector::kWidth ? Vector::store(p, v) : Vector::store(p, v, count);
}

// Sum of squares in four chains by column, so that the order depends on cols alone.
template <typename Vector, typename T>
float sum_of_squares(const T* x, int64_t cols) {
  Vector chain[4] = {Vector::zero(), Vector::zero(), Vector::zero(), Vector::zero()};
  int64_t i = 0;
  for (; i + 4 * Vector::kWidth <= cols; i += 4 * Vector::kWidth) {
    for (int j = 0; j < 4; ++j) {
      const Vector v = Vector::load(x + i + j * Vector::kWidth);
      chain[j] = Vector::multiply_add(v, v, chain[j]);
    }
  }
  for_each_vector<Vector>(cols - i, [&](int64_t offset, int64_t count) {
    const Vector v = load_up_to<Vector>(x + i + offset, count);
    chain[0] = Vector::multiply_add(v, v, chain[0]);
  });
  return Vector::sum((chain[0] + chain[1]) + (chain[2] + chain[3]));
}

template <typename Vector, typename T>
void rms_norm_rows(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    if (p.residual) {
      T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
      for_each_vector<Vector>(p.cols, [&](int64_t i, int64_t count) {
        store_up_to(residual + i, load_up_to<Vector>(x + i, count) + load_up_to<Vector>(residual + i, count), count);
      });
      x = residual;
    }
    const float mean = sum_of_squares<Vector>(x, p.cols) / static_cast<float>(p.cols);
    const Vector scale = Vector::set1(1.0f / sqrtf(mean + p.eps));
    for_each_vector<Vector>(p.cols, [&](int64_t i, int64_t count) {
      store_up_to(out + i, load_up_to<Vector>(x + i, count) * scale * load_up_to<Vector>(weight + i, count), count);
    });
  }
}

template <typename Vector, typename T>
void silu_mul_rows(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  const Vector one = Vector::set1(1);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride;
    const T* up = gate + p.cols;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    for_each_vector<Vector>(p.cols, [&](int64_t i, int64_t count) {
      const Vector g = load_up_to<Vector>(gate + i, count), u = load_up_to<Vector>(up + i, count);
      store_up_to(out + i, g / (one + Vector::exp(Vector::zero() - g)) * u, count);
    });
  }
}

template <typename Vector>
void rms_norm_any(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  if (p.dtype == DType::kF32) return rms_norm_rows<Vector, float>(p, row_begin, row_end);
  if (p.dtype == DType::kF16) return rms_norm_rows<Vector, F16>(p, row_begin, row_end);
  rms_norm_rows<Vector, Bf16>(p, row_begin, row_end);
}

template <typename Vector>
void silu_mul_any(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  if (p.dtype == DType::kF32) return silu_mul_rows<Vector, float>(p, row_begin, row_end);
  if (p.dtype == DType::kF16) return silu_mul_rows<Vector, F16>(p, row_begin, row_end);
  silu_mul_rows<Vector, Bf16>(p, row_begin, row_end);
}

template <typename Vector>
RowKernels row_kernels_of() {
  return {rms_norm_any<Vector>, silu_mul_any<Vector>};
}

}  // namespace
}  // namespace pe::cpu
