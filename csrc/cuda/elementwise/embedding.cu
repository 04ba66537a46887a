// SPDX-License-Identifier: Apache-2.0
// The embedding: row ids[t] of the table for every token t. Kernel, traffic and floor: gather.cuh.
#include "cuda/elementwise/gather.cuh"
#include "pe/linear.h"

namespace pe::cuda {

void embedding(const EmbeddingParams& p, Stream stream) {
  constexpr const char* kOp = "embedding";
  const auto bytes = static_cast<int64_t>(size_of(p.dtype));
  PE_CHECK(
      kOp, p.dim > 0 && p.dim * bytes % 16 == 0,
      "a row must be a positive multiple of 16 bytes, got dim " + std::to_string(p.dim) + " of " + name_of(p.dtype));
  check_aligned16(kOp, "out", p.out, p.out_stride, p.dtype);
  check_aligned16(kOp, "weight", p.weight, 0, p.dtype);
  const Gather rows{
      p.out, p.weight, p.ids, p.vocab_size, p.out_stride * bytes, p.dim * bytes, static_cast<int>(p.dim * bytes / 16)};
  gather(kOp, rows, p.num_tokens, stream);
}

}  // namespace pe::cuda
