// SPDX-License-Identifier: Apache-2.0
// The ring of prefill.cuh over a cache in e4m3: tiles arrive as they are, each warp widens the 8 rows that it copied,
// and the CTA multiplies what has been widened, as if the cache held T. smem: 4 tiles as they arrive + K and V widened,
// 70 KiB at D = 128
//
// One barrier a matrix, as for a cache of T: rows that have arrived are read by the warp that asked for them, and K is
// widened while nobody multiplies K any more, since all have passed the barrier of V in between; V likewise.
#pragma once
#include "cuda/attention/kv_format.cuh"
#include "cuda/attention/prefill.cuh"

namespace pe::cuda::attention {

// 16 elements become two vectors of T: K in the order of KvFormat's products, V in its own.
template <typename T, bool kKeys>
__device__ __forceinline__ void widen16(const uint4& quads, uint4 (&wide)[2]) {
  uint32_t pairs[8];
  widen4<T>(quads.x, pairs[0], pairs[1]);
  widen4<T>(quads.y, pairs[2], pairs[3]);
  widen4<T>(quads.z, pairs[4], pairs[5]);
  widen4<T>(quads.w, pairs[6], pairs[7]);
  constexpr int kStep = kKeys ? 2 : 1, kSecond = kKeys ? 1 : 4;
  wide[0] = make_uint4(pairs[0], pairs[kStep], pairs[2 * kStep], pairs[3 * kStep]);
  wide[1] = make_uint4(pairs[kSecond], pairs[kSecond + kStep], pairs[kSecond + 2 * kStep], pairs[kSecond + 3 * kStep]);
}

template <typename T, int kDim>
class TileRing<Fp8<T>, kDim> {
 public:
  __device__ __forceinline__ TileRing(const RunArgs& args, const Job& job, unsigned char* slots)
      : stream_(args, job), job_(job), slots_(slots) {
    request(job.tiles.begin, false);
    request(job.tiles.begin, true);
    request(job.tiles.begin + 1, false);
  }

  // As for a cache of T: wait for K or V of a tile, in this order, and ask for what takes the place of the one before.
  __device__ __forceinline__ const unsigned char* keys(int tile) {
    const unsigned char* widened = widen<true>(tile);
    request(tile + 1, true);
    return widened;
  }
  __device__ __forceinline__ const unsigned char* values(int tile) {
    const unsigned char* widened = widen<false>(tile);
    request(tile + 2, false);
    return widened;
  }

 private:
  using Format = KvFormat<Fp8<T>, kDim>;
  static constexpr int kWords = Format::kWords;
  static constexpr int kRows = kTileTokens / kWarps;  // of a tile, this warp's
  static_assert(kSlabTokens % kRows == 0, "a warp's rows lie in one slab");

  __device__ __forceinline__ unsigned char* slot(int tile, bool values) const {
    return slots_ + (tile % 2 * 2 + values) * kTileBytes<kWords> + warp_id() * kRows * kRowBytes<kWords>;
  }

  template <bool kKeys>
  __device__ __forceinline__ const unsigned char* widen(int tile) {
    cp_async_wait<kCtaStages - 2>();
    __syncwarp();  // all of the warp's copies have arrived
    const unsigned char* const from = slot(tile, !kKeys);
    unsigned char* const matrix = slots_ + Format::kCtaRingBytes + (kKeys ? 0 : kTileBytes<kDim>);
    unsigned char* const to = matrix + warp_id() * kRows * kRowBytes<kDim>;
    constexpr int kRowVectors = kDim / 16, kVectors = kRows * kRowVectors;
    static_assert(kVectors % kWarpSize == 0, "whole rounds of the warp");
#pragma unroll
    for (int i = 0; i < kVectors / kWarpSize; ++i) {
      const int index = i * kWarpSize + lane_id(), row = index / kRowVectors, vector = index % kRowVectors;
      uint4 wide[2];
      widen16<T, kKeys>(load16(from + row * kRowBytes<kWords> + vector * 16), wide);
      unsigned char* const place = to + row * kRowBytes<kDim> + vector * 32;
      store16(place, wide[0]);
      store16(place + 16, wide[1]);
    }
    sync_workers();  // all rows are there, and all warps are past the matrix before
    return matrix;
  }

  __device__ __forceinline__ void request(int tile, bool values) {
    if (tile < job_.tiles.end) {
      if (!values) stream_.enter_tile(tile);
      stream_.template copy_rows<kRows>(slot(tile, values), tile * kTileTokens + warp_id() * kRows, values);
    }
    cp_async_commit();  // also when empty: groups are counted
  }

  KvStream<T, kWords> stream_;
  const Job& job_;
  unsigned char* slots_;
};

}  // namespace pe::cuda::attention
