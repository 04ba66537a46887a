// SPDX-License-Identifier: Apache-2.0
// Random inputs, the 16-bit and 8-bit float formats, and the error measure of the benchmarks. Never zeros: they hide
// unwritten outputs and run faster than real data. Outputs are poisoned with NaN, so that an element nobody wrote
// cannot pass.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "pe/core.h"

namespace bench {

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);  // keep a NaN a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest even by letting the fp32 adder do it; subnormals included.
inline uint16_t to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 6.103515625e-05f) return sign | static_cast<uint16_t>(std::nearbyintf(magnitude * 16777216.0f));
  bits &= 0x7fffffffu;
  bits += 0xfffu + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((bits - (112u << 23)) >> 13);
}

inline float from_f16(uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  float value = exponent == 31  ? (mantissa ? std::numeric_limits<float>::quiet_NaN() : HUGE_VALF)
                : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return half & 0x8000 ? -value : value;
}

// e4m3: to nearest even, saturating at 448.
inline uint8_t to_f8(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  const int exponent = magnitude < 0.015625f ? -6 : std::ilogb(magnitude);
  // In steps of the format: a mantissa that rounds up to 16 carries into the exponent by itself.
  const int steps = static_cast<int>(std::nearbyintf(std::ldexp(magnitude, 3 - exponent)));
  return sign | static_cast<uint8_t>((exponent + 6) * 8 + steps);
}

inline float from_f8(uint8_t byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const float value = (byte & 0x7f) == 0x7f ? std::numeric_limits<float>::quiet_NaN()
                      : exponent == 0       ? std::ldexp(static_cast<float>(mantissa), -9)
                                            : std::ldexp(static_cast<float>(mantissa + 8), exponent - 10);
  return byte & 0x80 ? -value : value;
}

// splitmix64 (Steele et al. 2014): the same inputs on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  // Sum of four uniforms, scaled to unit variance: close enough to a normal, and cheap.
  float normal() {
    const uint64_t b = bits();
    const int sum = static_cast<int>(b & 0xffff) + static_cast<int>((b >> 16) & 0xffff) +
                    static_cast<int>((b >> 32) & 0xffff) + static_cast<int>(b >> 48);
    return static_cast<float>(sum - 2 * 65535) * (1.7320508f / 65535.0f);
  }

 private:
  uint64_t state_;
};

// A host array of one of the element types.
class Array {
 public:
  Array(int64_t size, pe::DType dtype) : dtype_(dtype), size_(size), bytes_(size * pe::size_of(dtype)) {}

  static Array random(int64_t size, pe::DType dtype, uint64_t seed, float scale = 1.0f) {
    Array array(size, dtype);
    Random random(seed);
    for (int64_t i = 0; i < size; ++i) array.set(i, random.normal() * scale);
    return array;
  }
  static Array poisoned(int64_t size, pe::DType dtype) {
    Array array(size, dtype);
    array.poison();
    return array;
  }

  void poison() { std::memset(bytes_.data(), 0xff, bytes_.size()); }  // a NaN in all formats
  float at(int64_t i) const {
    if (dtype_ == pe::DType::kF32) {
      float value;
      std::memcpy(&value, bytes_.data() + 4 * i, 4);
      return value;
    }
    if (dtype_ == pe::DType::kF8E4M3) return from_f8(bytes_[i]);
    uint16_t half;
    std::memcpy(&half, bytes_.data() + 2 * i, 2);
    return dtype_ == pe::DType::kBF16 ? from_bf16(half) : from_f16(half);
  }
  void set(int64_t i, float value) {
    if (dtype_ == pe::DType::kF32) {
      std::memcpy(bytes_.data() + 4 * i, &value, 4);
    } else if (dtype_ == pe::DType::kF8E4M3) {
      bytes_[i] = to_f8(value);
    } else {
      const uint16_t half = dtype_ == pe::DType::kBF16 ? to_bf16(value) : to_f16(value);
      std::memcpy(bytes_.data() + 2 * i, &half, 2);
    }
  }

  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  int64_t size() const { return size_; }
  size_t bytes() const { return bytes_.size(); }
  pe::DType dtype() const { return dtype_; }

 private:
  pe::DType dtype_;
  int64_t size_;
  std::vector<unsigned char> bytes_;
};

// ||a - b|| / ||b|| accumulated term by term; NaN or infinity anywhere in `got` makes it NaN.
class ErrorNorm {
 public:
  void add(double got, double want) {
    difference_ += (got - want) * (got - want);
    reference_ += want * want;
  }
  double value() const {
    const double error = std::sqrt(difference_ / (reference_ > 0 ? reference_ : 1));
    return std::isfinite(error) ? error : std::numeric_limits<double>::quiet_NaN();
  }

 private:
  double difference_ = 0, reference_ = 0;
};

inline double relative_error(const Array& got, const Array& want) {
  ErrorNorm norm;
  for (int64_t i = 0; i < want.size(); ++i) norm.add(got.at(i), want.at(i));
  return norm.value();
}

// One rounding of a result to `dtype` plus what fp32 accumulation in another order can add. Two correct versions may
// round to neighbours, so the 16-bit bars are two to three times the rms of one rounding.
inline double tolerance(pe::DType dtype) {
  return dtype == pe::DType::kF32 ? 2e-5 : dtype == pe::DType::kF16 ? 6e-4 : 4e-3;
}

}  // namespace bench
