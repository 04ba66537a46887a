// SPDX-License-Identifier: Apache-2.0
// Choices of speed that a benchmark may force, to measure one against the other in one process. No result depends on
// them. Set before a graph is captured: what is captured keeps the choice.
#pragma once
#include <cstdint>
#include <string>

#include "pe/core.h"

namespace pe::cuda {

struct Tuning {
  int64_t overlap = 1;            // kernels may start before their predecessor has ended (launch.cuh)
  int64_t stream_rows = 0;        // up to so many rows every dense layer streams its weights (stream_gemm.h), if it can
  int64_t prefetched_stages = 0;  // weights that stream beyond the ring are asked into the L2 ahead of the predecessor
  int64_t suggestion = 0;         // how many of cuBLASLt's algorithms that would do are passed over (linear.cpp)
};
inline Tuning tuning;

inline void set_tuning(const std::string& name, int64_t value) {
  if (name == "overlap") {
    tuning.overlap = value;
  } else if (name == "stream_rows") {
    tuning.stream_rows = value;
  } else if (name == "prefetched_stages") {
    tuning.prefetched_stages = value;
  } else if (name == "suggestion") {
    tuning.suggestion = value;
  } else {
    throw_error("set_tuning", "unknown name " + name + " (have overlap, stream_rows, prefetched_stages, suggestion)");
  }
}

}  // namespace pe::cuda
