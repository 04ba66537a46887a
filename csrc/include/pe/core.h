// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the C++ API: element types, errors, streams, workspaces.
//
// Everything under include/pe compiles with a plain C++17 compiler: no torch, no CUDA header.
// Every op is a params struct of pointers, sizes and strides plus one function in pe::cpu and one in
// pe::cuda with the same meaning. The rules that hold for all of them:
//   * the op never allocates, never synchronises and never reads device memory on the host, so that
//     every pe::cuda call can be captured in a CUDA graph;
//   * strides are in elements, offsets are computed in 64 bits;
//   * sizes known to the host (num_seqs, num_tokens, ...) are upper bounds: rows past the live ones are
//     padding, marked in device memory (query_start equal, slot -1), and are neither read nor written;
//   * a wrong argument throws pe::Error, whose text names the op, what was expected and what came.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

struct CUstream_st;  // declared, not included: a cudaStream_t is a CUstream_st*

namespace pe {

using Stream = CUstream_st*;  // ignored by pe::cpu

// kF8E4M3 (sign, 4 bits of exponent, 3 of mantissa; up to 448, no infinities; arXiv 2209.05433) is an element of KV
// caches alone.
enum class DType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kF8E4M3 = 3 };

constexpr size_t size_of(DType t) { return t == DType::kF32 ? 4 : t == DType::kF8E4M3 ? 1 : 2; }
const char* name_of(DType t);  // "f32", "f16", "bf16", "f8e4m3"

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Scratch memory lent by the caller for one call; 256-byte aligned.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

template <typename T>
constexpr T div_ceil(T a, T b) {
  return (a + b - 1) / b;
}
template <typename T>
constexpr T round_up(T a, T b) {
  return div_ceil(a, b) * b;
}

[[noreturn]] void throw_error(const char* op, const std::string& text);

// PE_CHECK("rms_norm", cols % 8 == 0, "cols must be a multiple of 8, got " + std::to_string(cols))
#define PE_CHECK(op, condition, text)              \
  do {                                             \
    if (!(condition)) ::pe::throw_error(op, text); \
  } while (0)

}  // namespace pe
