// SPDX-License-Identifier: Apache-2.0
// A dense layer and its weights on the GPU, for the benchmarks of linear.
#pragma once
#include <string>

#include "common.h"

namespace bench {

using pe::DType;

struct Layer {
  const char* name;
  int64_t n, k;
  DType dtype, out_dtype;
  bool bias;
};
constexpr DType kB = DType::kBF16, kH = DType::kF16, kF = DType::kF32;

inline std::string title(const Layer& layer) {
  return std::string(pe::name_of(layer.dtype)) + " " + layer.name + " " + std::to_string(layer.n) + "x" +
         std::to_string(layer.k);
}

inline pe::LinearParams params(const Layer& layer, int64_t m) {
  pe::LinearParams p;
  p.m = m, p.n = layer.n, p.k = layer.k, p.x_stride = layer.k, p.out_stride = layer.n;
  p.dtype = layer.dtype, p.out_dtype = layer.out_dtype;
  return p;
}

struct Weights {
  RandomTensor all;  // copies one behind the other
  int64_t size, num_copies;
  RandomTensor bias;

  Weights(const Layer& layer, size_t rotate_bytes)
      : Weights(layer, pe::div_ceil<int64_t>(rotate_bytes, layer.n * layer.k * pe::size_of(layer.dtype)), 0) {}

  // Copy i starts i * size elements further in the repeated pool, so the copies differ.
  const void* copy(int64_t i, DType dtype) const {
    return static_cast<unsigned char*>(all.data()) + i % num_copies * size * pe::size_of(dtype);
  }

 private:
  Weights(const Layer& layer, int64_t copies, int)
      : all(layer.n * layer.k * copies, layer.dtype, 3, 1 / std::sqrt(static_cast<float>(layer.k))),
        size(layer.n * layer.k),
        num_copies(copies),
        bias(layer.n, layer.dtype, 5) {}
};

}  // namespace bench
