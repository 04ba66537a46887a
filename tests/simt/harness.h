// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: checks that count, buffers with guard bytes, deterministic numbers, and every thread
// order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/common/vec.cuh"
#include "simt/simt.h"

namespace pe::test {

inline int num_failed = 0, num_checked = 0;

#define EXPECT(condition, ...)                                               \
  do {                                                                       \
    ++::pe::test::num_checked;                                               \
    if (!(condition)) {                                                      \
      if (++::pe::test::num_failed <= 20) {                                  \
        std::printf("%s:%d: %s is false; ", __FILE__, __LINE__, #condition); \
        std::printf("" __VA_ARGS__);                                         \
        std::printf("\n");                                                   \
      }                                                                      \
    }                                                                        \
  } while (0)

inline int report(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, num_checked, num_failed);
  return num_failed == 0 && num_checked > 0 ? 0 : 1;
}

// The text of the pe::Error that body throws, or "" when it throws none.
inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}
inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Random {  // splitmix64
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float uniform() { return static_cast<float>(next() >> 40) / static_cast<float>(1 << 23) - 1.0f; }  // [-1, 1)
};

// n elements of T, all 0xff bytes (NaN, -1) at first, 16-byte aligned, between guards that must stay as they are.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : n_(n), bytes_(static_cast<size_t>(n) * sizeof(T) + 2 * kGuard + 256, 0xff) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    begin_ = round_up<size_t>(address + kGuard, 256) - address;
    std::memset(bytes_.data(), 0x5a, begin_);
    const size_t end = begin_ + static_cast<size_t>(n) * sizeof(T);
    std::memset(bytes_.data() + end, 0x5a, bytes_.size() - end);
  }
  Buffer(const Buffer&) = delete;
  T* data() { return reinterpret_cast<T*>(bytes_.data() + begin_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }
  std::vector<unsigned char> bytes() {
    const auto* p = reinterpret_cast<unsigned char*>(data());
    return {p, p + static_cast<size_t>(n_) * sizeof(T)};
  }
  bool guards_intact() const {
    const size_t end = begin_ + static_cast<size_t>(n_) * sizeof(T);
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < begin_ || i >= end) && bytes_[i] != 0x5a) return false;
    }
    return true;
  }
  bool untouched(int64_t from, int64_t count) {  // still the initial 0xff bytes
    const auto* p = reinterpret_cast<unsigned char*>(data() + from);
    for (size_t i = 0; i < static_cast<size_t>(count) * sizeof(T); ++i) {
      if (p[i] != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  int64_t n_;
  std::vector<unsigned char> bytes_;
  size_t begin_ = 0;
};

template <typename T>
constexpr DType dtype_of() {
  return std::is_same_v<T, float> ? DType::kF32 : std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;
}

// Spacing of T relative to the value: a result computed in fp32 and rounded once is within half of it, plus fp32's own
// error.
template <typename T>
constexpr double ulp() {
  return std::is_same_v<T, float> ? 1.2e-7 : std::is_same_v<T, __half> ? 9.8e-4 : 7.9e-3;
}

// Within one rounding of T, with a floor for results near zero whose terms are of size `scale`.
template <typename T>
bool close(T got, double expected, double scale = 1.0) {
  const double error = std::abs(static_cast<double>(pe::cuda::to_float(got)) - expected);
  return error <= 0.51 * ulp<T>() * std::abs(expected) + 4e-6 * scale + (sizeof(T) == 2 ? 6e-8 : 0);
}

// Runs body in forward, reverse and two pseudo-random thread orders.
inline void for_each_order(const std::function<void()>& body) {
  simt::Options& options = simt::options();
  const simt::Options saved = options;
  for (const auto& [order, seed] : {std::pair{simt::Order::kForward, 1}, std::pair{simt::Order::kReverse, 1},
                                    std::pair{simt::Order::kRandom, 1}, std::pair{simt::Order::kRandom, 2}}) {
    options.order = order;
    options.seed = static_cast<uint64_t>(seed);
    body();
  }
  options = saved;
}

template <typename Body>
void for_each_dtype(Body body) {
  body(float{});
  body(__half{});
  body(__nv_bfloat16{});
}

}  // namespace pe::test
