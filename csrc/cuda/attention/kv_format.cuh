// SPDX-License-Identifier: Apache-2.0
// What the paths need to know of how the cache holds K and V: how rows travel, and how a slab of 16 keys becomes
// operands of the products. The paths are templates on T: f16 or bf16, or Fp8<f16> and Fp8<bf16> for a cache in e4m3.
//
// A cache in e4m3 travels as 16-bit words of two elements (strides and row lengths in RunArgs are in words), so that
// what copies rows is the same code, and is widened in registers on its way to the tensor cores: K and V cross memory
// and shared memory at half the bytes. ldmatrix moves 16-bit words, hence an order of its own:
//   * K: a lane gets the dims 4 t .. 4 t + 3 of 16 where fragments of 16-bit elements hold 2 t, 2 t + 1, 2 t + 8, 2 t
//   + 9.
//     A product sums over dims, so q is loaded in the same order (kQuads) and nothing else changes. Inside the step of
//     16 the hardware may sum in another order than for a cache of T: the bits of a result are those of the cache's
//     format.
//   * V: transposed, a lane gets two neighbouring dims, 2 g and 2 g + 1, which are columns of the output. One product
//     makes the even columns, one the odd ones; order_columns puts them in their places at a chunk's end.
// Whoever widens into shared memory (prefill_fp8.cuh) writes K in that order: the same products, bit for bit.
#pragma once
#include "cuda/attention/job.cuh"
#include "cuda/common/fp8.cuh"

namespace pe::cuda::attention {

// The cache holds e4m3, the products take T.
template <typename T>
struct Fp8 {};

template <typename T, int kDim>
struct KvFormat {
  using Element = T;                   // of q, the products and the output
  static constexpr int kWords = kDim;  // 16-bit words of a row
  static constexpr bool kQuads = false;
  // Decodes are the work of CTAs, of pairs of warps; a third warpgroup fetches prompts' tiles (prefill_ring.cuh).
  static constexpr bool kByCta = kDecodesByCta<kDim>, kByBoxes = kTakesBoxes<kWords>, kFetchesPrefill = kByBoxes;
  static constexpr int smem_bytes(int num_slots, bool by_cta, bool by_boxes) {
    return attention::smem_bytes<kDim>(num_slots, by_cta, by_boxes);
  }

  static __device__ __forceinline__ void multiply_keys(const unsigned char* keys, const uint32_t (&q)[kDim / 16][4],
                                                       float (*scores)[4]) {
    attention::multiply_keys<T, kDim, 1>(keys, q, scores);
  }
  static __device__ __forceinline__ void multiply_values(const unsigned char* values, const uint32_t (&weights)[4],
                                                         float (&acc)[kDim / 8][4]) {
    attention::multiply_values<T, kDim>(values, weights, acc);
  }
  // What either does with the two 16-byte vectors number i of each row of a slab: of keys 0 .. 7, then of 8 .. 15; of
  // values, transposed, both halves' first vectors, then their second.
  static __device__ __forceinline__ void multiply_key_vectors(const uint32_t (&b)[4], const uint32_t (&q)[kDim / 16][4],
                                                              int i, float (*scores)[4]) {
    mma_m16n8k16<T>(scores[0], q[i], b[0], b[1]);
    mma_m16n8k16<T>(scores[1], q[i], b[2], b[3]);
  }
  static __device__ __forceinline__ void multiply_value_vectors(const uint32_t (&b)[4], const uint32_t (&weights)[4],
                                                                int i, float (&acc)[kDim / 8][4]) {
    mma_m16n8k16<T>(acc[2 * i], weights, b[0], b[1]);
    mma_m16n8k16<T>(acc[2 * i + 1], weights, b[2], b[3]);
  }
  static __device__ __forceinline__ float key_scale(const RunArgs&, const Job&) { return 1; }
  static __device__ __forceinline__ void scale_scores(const RunArgs&, float, TileScores&) {}
  static __device__ __forceinline__ void scale_scores(const RunArgs&, const Job&, TileScores&) {}
  static __device__ __forceinline__ void scale_values(const RunArgs&, const Job&, float (&)[kDim / 8][4]) {}
  template <int kHalves>
  static __device__ __forceinline__ void order_columns(float (&)[kDim / 8][4]) {}
};

template <typename T, int kDim>
struct KvFormat<Fp8<T>, kDim> {
  static_assert(kDim % 32 == 0, "an ldmatrix takes 32 dims");
  using Element = T;
  static constexpr int kWords = kDim / 2;
  static constexpr bool kQuads = true;
  static constexpr bool kByCta = false, kByBoxes = kTakesBoxes<kWords>, kFetchesPrefill = false;
  // The ring of a CTA: four tiles as they arrive, then K and V widened.
  static constexpr int kCtaRingBytes = kCtaStages * kTileBytes<kWords>;
  static constexpr int smem_bytes(int num_slots, bool, bool by_boxes) {
    const int warps = kWarps * num_slots * kSlabBytes<kWords>, cta = kCtaRingBytes + 2 * kTileBytes<kDim>;
    int most = warps > cta ? warps : cta;
    if (by_boxes && kPairBytes<kWords> > most) most = kPairBytes<kWords>;
    return most + kControlBytes;
  }

  // scores of one slab += q k^T, the products ascending over head_dim in steps of 16
  static __device__ __forceinline__ void multiply_keys(const unsigned char* keys, const uint32_t (&q)[kDim / 16][4],
                                                       float (*scores)[4]) {
    const int lane = lane_id();
    const unsigned char* row = keys + (lane / 16 * 8 + lane % 8) * kRowBytes<kWords> + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < kWords / 16; ++i) {
      uint32_t quads[4];
      ldmatrix_x4(quads, row + i * 32);
      multiply_key_vectors(quads, q, i, scores);
    }
  }
  // quads: of keys 0 .. 7, then 16 dims on; of keys 8 .. 15 likewise.
  static __device__ __forceinline__ void multiply_key_vectors(const uint32_t (&quads)[4],
                                                              const uint32_t (&q)[kDim / 16][4], int i,
                                                              float (*scores)[4]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b0, b1;
        widen4<T>(quads[2 * half + step], b0, b1);
        mma_m16n8k16<T>(scores[half], q[2 * i + step], b0, b1);
      }
    }
  }

  // acc += weights of one slab x v, even and odd columns of each 16 apart
  static __device__ __forceinline__ void multiply_values(const unsigned char* values, const uint32_t (&weights)[4],
                                                         float (&acc)[kDim / 8][4]) {
    const int lane = lane_id();
    const unsigned char* row = values + (lane / 8 % 2 * 8 + lane % 8) * kRowBytes<kWords> + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < kWords / 16; ++i) {
      uint32_t quads[4];
      ldmatrix_x4_trans(quads, row + i * 32);
      multiply_value_vectors(quads, weights, i, acc);
    }
  }
  // quads: of keys 0 .. 7 and 8 .. 15, then 16 dims on: two keys x two dims each.
  static __device__ __forceinline__ void multiply_value_vectors(const uint32_t (&quads)[4],
                                                                const uint32_t (&weights)[4], int i,
                                                                float (&acc)[kDim / 8][4]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t even[2], odd[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        widen4<T>(__byte_perm(quads[2 * step + half], 0, 0x3120), even[half], odd[half]);
      const int n = 2 * i + step;
      mma_m16n8k16<T>(acc[2 * n], weights, even[0], even[1]);
      mma_m16n8k16<T>(acc[2 * n + 1], weights, odd[0], odd[1]);
    }
  }

  static __device__ __forceinline__ float key_scale(const RunArgs& args, const Job& job) {
    return args.k_scale == nullptr ? 1 : __ldg(args.k_scale + job.kv_head);
  }
  // By that, for those who have a register for it.
  static __device__ __forceinline__ void scale_scores(const RunArgs& args, float scale, TileScores& scores) {
    if (args.k_scale == nullptr) return;
#pragma unroll
    for (int j = 0; j < kTileTokens / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j][e] *= scale;
    }
  }
  static __device__ __forceinline__ void scale_scores(const RunArgs& args, const Job& job, TileScores& scores) {
    if (args.k_scale != nullptr) scale_scores(args, key_scale(args, job), scores);
  }

  // Once for each chunk: what it adds up to stands for that much.
  static __device__ __forceinline__ void scale_values(const RunArgs& args, const Job& job, float (&acc)[kDim / 8][4]) {
    if (args.v_scale == nullptr) return;
    const float scale = __ldg(args.v_scale + job.kv_head);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[j][e] *= scale;
    }
  }

  // Of each 16 columns lane t has 4 t .. 4 t + 3 (even ones in one tile, odd ones in the other) and is to have 2 t and
  // 2 t + 1 of either half.
  template <int kHalves>
  static __device__ __forceinline__ void order_columns(float (&acc)[kDim / 8][4]) {
    const int lane = lane_id(), t = lane % 4;
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
        const float even[2] = {acc[n][2 * i], acc[n][2 * i + 1]}, odd[2] = {acc[n + 1][2 * i], acc[n + 1][2 * i + 1]};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int from = lane - t + 2 * half + t / 2;
          const float a[2] = {__shfl_sync(kFullMask, even[0], from), __shfl_sync(kFullMask, even[1], from)};
          const float b[2] = {__shfl_sync(kFullMask, odd[0], from), __shfl_sync(kFullMask, odd[1], from)};
          acc[n + half][2 * i] = t % 2 == 0 ? a[0] : a[1];
          acc[n + half][2 * i + 1] = t % 2 == 0 ? b[0] : b[1];
        }
      }
    }
  }
};

}  // namespace pe::cuda::attention
