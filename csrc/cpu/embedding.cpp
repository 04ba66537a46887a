// SPDX-License-Identifier: Apache-2.0
// Row gather from a packed weight (layout: pe/linear.h), so that a tied head and embedding are one copy in memory.
//
// A row is one 4-byte group per 64-byte line of its panel: 16 times the row's own bytes are fetched. At one token a
// step that is microseconds, and a second copy of the table would cost more memory than it is worth.
#include <cstring>

#include "linear_kernels.h"
#include "pe/parallel.h"
#include "run.h"

namespace pe::cpu {
namespace {

void gather(const EmbeddingParams& p, int64_t begin, int64_t end) {
  const int64_t row_bytes = p.dim * static_cast<int64_t>(size_of(p.dtype)), groups = row_bytes / 4;
  const int64_t out_stride = p.out_stride * static_cast<int64_t>(size_of(p.dtype));
  for (int64_t t = begin; t < end; ++t) {
    char* out = static_cast<char*>(p.out) + t * out_stride;
    const int64_t id = p.ids[t];
    if (id < 0 || id >= p.vocab_size) {
      std::memset(out, 0, static_cast<size_t>(row_bytes));
      continue;
    }
    const char* group =
        static_cast<const char*>(p.weight) + id / kPanelFeatures * groups * 64 + id % kPanelFeatures * 4;
    for (int64_t i = 0; i < groups; ++i) std::memcpy(out + i * 4, group + i * 64, 4);
  }
}

}  // namespace

void embedding(const EmbeddingParams& params) {
  const int64_t multiple = params.dtype == DType::kF32 ? 8 : 32;
  PE_CHECK("embedding", params.num_tokens >= 0 && params.vocab_size > 0,
           "expected num_tokens >= 0 and vocab_size > 0, got " + std::to_string(params.num_tokens) + " and " +
               std::to_string(params.vocab_size));
  PE_CHECK("embedding", params.dim > 0 && params.dim % multiple == 0,
           "dim must be a multiple of " + std::to_string(multiple) + " for a packed " + name_of(params.dtype) +
               " weight, got " + std::to_string(params.dim));
  PE_CHECK("embedding", params.num_tokens == 0 || (params.out && params.ids && params.weight),
           "out, ids and weight must not be null");
  PE_CHECK("embedding", params.num_tokens <= 1 || params.out_stride >= params.dim,
           "out_stride must cover a row of dim " + std::to_string(params.dim) + ", got " +
               std::to_string(params.out_stride));
  run(params, [](const EmbeddingParams& p) {
    parallel_for(p.num_tokens, 4, [&](int64_t begin, int64_t end) { gather(p, begin, end); });
  });
}

}  // namespace pe::cpu
