// SPDX-License-Identifier: Apache-2.0
// Dense layers: y = x W^T + b, and the row gather that is an embedding.
//
// A weight lives in the layout its backend streams best, made once at load by pack_weight:
//   cuda: row-major [n, k], unchanged.
//   cpu : panels of 16 output features, each panel's k in groups of 4 bytes:
//         bf16: [ceil(n / 16)][k / 2][16][2]   (one 64-byte line = 16 features x 2 consecutive k: an AVX-512
//               vdpbf16ps operand, and 16 such lines = one AMX B tile)
//         f32 : [ceil(n / 16)][k][16]
//         the last panel is padded with zero rows. k % 32 == 0 is required for bf16, k % 8 == 0 for f32.
// Batch invariance: the order in which a (row, feature) is summed over k depends on k and the machine, never on
// m, on the row's place in the batch or on the number of threads. No split-K.
#pragma once
#include "pe/core.h"

namespace pe {

struct LinearParams {
  void* out = nullptr;           // [m, n] of out_dtype
  const void* x = nullptr;       // [m, k] of dtype
  const void* weight = nullptr;  // packed, of dtype
  const void* bias = nullptr;    // [n] of dtype, or null; only with out_dtype = dtype
  int64_t m = 0, n = 0, k = 0;
  int64_t out_stride = 0, x_stride = 0;
  DType dtype = DType::kBF16;
  DType out_dtype = DType::kBF16;  // dtype, or kF32 (logits)
};

// Accumulates in fp32 and rounds once to out_dtype (bias added before the rounding).
namespace cpu {
void linear(const LinearParams&);

struct PackWeightParams {
  void* out = nullptr;           // packed_bytes(n, k, dtype)
  const void* weight = nullptr;  // [n, k] row-major
  int64_t n = 0, k = 0, weight_stride = 0;
  DType dtype = DType::kBF16;
};
size_t packed_bytes(int64_t n, int64_t k, DType dtype);
void pack_weight(const PackWeightParams&);
}  // namespace cpu
namespace cuda {
// For few rows on sm_90 a kernel that streams the weights, else cuBLASLt with split-K off and the algorithm fixed per
// (n, k, dtype, size class of m); the same bits. workspace may be empty.
// The weights may be read before the preceding kernel of the stream has ended: they must not be what it writes.
void linear(const LinearParams&, Workspace, Stream);
size_t linear_workspace_bytes();
}  // namespace cuda

struct EmbeddingParams {
  void* out = nullptr;           // [num_tokens, dim]
  const int32_t* ids = nullptr;  // [num_tokens]; an id outside [0, vocab_size) gives a row of zeros
  const void* weight = nullptr;  // packed (see above) [vocab_size, dim]
  int64_t num_tokens = 0, vocab_size = 0, dim = 0, out_stride = 0;
  DType dtype = DType::kBF16;
};

namespace cpu {
void embedding(const EmbeddingParams&);
}
namespace cuda {
void embedding(const EmbeddingParams&, Stream);
}
}  // namespace pe
