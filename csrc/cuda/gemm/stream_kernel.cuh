// SPDX-License-Identifier: Apache-2.0
// y[m, n] = x[m, k] W[n, k]^T + b for few rows: W crosses from memory once, at the speed of memory.
// x, W, b of T in {bf16, f16}; y of T or f32; m <= 64 kGroups; n % 8 == 0; k % 64 == 0; rows of x, W, y 16-byte
// aligned. Each y is one fp32 sum over ascending k in steps of 16, then + b, then one rounding: the bits do not depend
// on m, on the tile or on the place of a row.
// grid: blocks that take the tiles of kTile features in turn · block: kGroups warpgroups of 64 rows + 1 producer warp
// smem: a ring of stages of `depth` boxes of 64 k, W [depth, kTile, 64] and x [depth, rows, 64]
// wgmma m64nNk16, A = x, B = W
// traffic: W once from memory; x once per tile from L2; y once. 2 m flop per 2 bytes: HBM-bound below m of about 250
// floor: llama31-8b gate_up 28672 x 4096: 235 MB = 78.3 us at 3.0 TB/s; qkv 16.8, o 11.2, down 39.2, head 350
//
// A stage is one request for W and one for x: the copy engine is told that they are tensors [k / 64, rows, 64], of
// which a request takes several boxes. A stage takes 180 ns whatever it holds (two barriers, two requests, one wait for
// products), in which an SM's share of the memory's rate is 4 KiB: narrow tiles are fast only in deep stages.
//
// Rows of x are padded only to 8 in the ring, whereas the tensor cores read 64 per warpgroup: what they read beyond is
// the next stage's or never written, and goes into rows of the result that nobody stores.
#pragma once
#include <cuda.h>

#include "cuda/common/gmma_gemm.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/gemm/stream_plan.h"

namespace pe::cuda::stream {

struct Args {
  void* out;
  const void* bias;
  int64_t out_stride;
  int m, n, num_boxes;     // boxes of 64 k per tile
  int depth;               // boxes per stage
  int num_stages, x_rows;  // of the ring
  int num_prefetched;      // stages behind the ring that are asked into the L2 before the predecessor has ended
  bool f32_out;
};

using Kernel = void (*)(CUtensorMap, CUtensorMap, Args);
template <typename T>
Kernel kernel_for(int tile, int groups);  // null when there is none

constexpr int kGroupThreads = 4 * kWarpSize;
constexpr int threads_of(int groups) { return groups * kGroupThreads + kWarpSize; }

#if defined(__CUDACC__)

// Code for other targets than sm_90a does nothing, and says so: its kernels admit no block of our size.
#if defined(__CUDA_ARCH__) && !defined(PE_SM90A)
#define PE_STREAM_THREADS(groups) kWarpSize
#else
#define PE_STREAM_THREADS(groups) threads_of(groups)
#endif

#if defined(PE_SM90A)

// ---- the ring -------------------------------------------------------------------------------------------------------

// [full barriers][empty barriers] | 1024-byte aligned: [W stages][x stages][pad]
struct Ring {
  SmemAddress barriers, weights, x;
  int weight_box, x_box;                  // bytes of one box
  int weight_bytes, x_bytes, num_stages;  // bytes of one stage

  __device__ Ring(unsigned char* smem, const Args& args, int tile)
      : barriers(static_cast<SmemAddress>(__cvta_generic_to_shared(smem))),
        weights((barriers + kBarrierBytes + kAlignBytes - 1) & ~static_cast<SmemAddress>(kAlignBytes - 1)),
        x(weights + args.num_stages * args.depth * tile * kBoxRowBytes),
        weight_box(tile * kBoxRowBytes),
        x_box(args.x_rows * kBoxRowBytes),
        weight_bytes(args.depth * weight_box),
        x_bytes(args.depth * x_box),
        num_stages(args.num_stages) {}

  __device__ SmemAddress full(int slot) const { return barriers + 8 * slot; }
  __device__ SmemAddress empty(int slot) const { return barriers + 8 * (kMaxStages + slot); }
  __device__ SmemAddress weight_slot(int slot) const { return weights + slot * weight_bytes; }
  __device__ SmemAddress x_slot(int slot) const { return x + slot * x_bytes; }
};

struct Position {
  int slot = 0;
  uint32_t parity = 0;  // of the pass through the ring
  __device__ void advance(const Ring& ring) {
    if (++slot < ring.num_stages) return;
    slot = 0;
    parity ^= 1;
  }
};

// ---- the producer: one thread ---------------------------------------------------------------------------------------

// The stages of this block in order: all k of a tile, then the next tile.
struct Walk {
  int feature, box = 0;
  __device__ void advance(const Args& args, int tile) {
    if ((box += args.depth) < args.num_boxes) return;
    box = 0;
    feature += static_cast<int>(gridDim.x) * tile;
  }
};

struct Producer {
  const CUtensorMap *weight_map, *x_map;
  const Args& args;
  const Ring& ring;
  int tile;

  __device__ void load_weights(const Position& at, const Walk& walk) const {
    mbarrier_expect(ring.full(at.slot), ring.weight_bytes + ring.x_bytes);
    gmma::copy_boxes(ring.weight_slot(at.slot), weight_map, walk.feature, walk.box, ring.full(at.slot),
                     gmma::kEvictFirst);
  }
  __device__ void prefetch_weights(const Walk& walk) const { gmma::prefetch_boxes(weight_map, walk.feature, walk.box); }
  __device__ void load_x(const Position& at, const Walk& walk) const {
    gmma::copy_boxes(ring.x_slot(at.slot), x_map, 0, walk.box, ring.full(at.slot), gmma::kEvictNormal);
  }
};

__device__ inline void init_barriers(const Ring& ring, int num_groups) {
  for (int slot = 0; slot < ring.num_stages; ++slot) {
    mbarrier_init(ring.full(slot), 1);
    mbarrier_init(ring.empty(slot), num_groups);
  }
  mbarrier_init_fence();
}

// Weights depend on no kernel before, so a ring full of them is asked for before anything is waited for. The successor
// is released before that wait too: what it may read before its own wait is what no kernel of a step writes.
__device__ inline void produce(const Producer& p, int num_groups, int num_steps, int first_feature) {
  const bool leads = lane_id() == 0;
  const int ahead = min(num_steps, p.ring.num_stages);
  Position weights_at;
  Walk weights{first_feature};
  if (leads) {
    gmma::prefetch_map(p.weight_map);
    gmma::prefetch_map(p.x_map);
    init_barriers(p.ring, num_groups);
    for (int i = 0; i < ahead; ++i, weights.advance(p.args, p.tile), weights_at.advance(p.ring))
      p.load_weights(weights_at, weights);
  }
  __syncthreads();  // with the consumers, who find the barriers there
  if (!leads) return;
  release_successor();
  const int prefetched = min(num_steps, ahead + p.args.num_prefetched);
  for (int i = ahead; i < prefetched; ++i, weights.advance(p.args, p.tile)) p.prefetch_weights(weights);
  wait_for_predecessor();
  Position at;
  Walk walk{first_feature};
  for (int i = 0; i < num_steps; ++i, walk.advance(p.args, p.tile), at.advance(p.ring)) {
    if (i >= ahead) {
      mbarrier_wait(p.ring.empty(at.slot), at.parity ^ 1);
      p.load_weights(at, walk);
    }
    p.load_x(at, walk);
  }
}

// ---- the consumers: warpgroups --------------------------------------------------------------------------------------

// The sums of one thread: rows 16 w + g and 8 below it of its warpgroup (gmma_gemm.cuh).
template <int kTile>
using Sums = float[kTile / 2];

// One warp tells the producer that its warpgroup has read the slot.
__device__ __forceinline__ void release(const Ring& ring, int slot) {
  if (threadIdx.x % kGroupThreads == 0) mbarrier_arrive(ring.empty(slot));
}

template <typename T, int kTile>
__device__ __forceinline__ void multiply_box(Sums<kTile>& sums, SmemAddress x, SmemAddress weights, bool first) {
  const uint64_t a = gmma::descriptor(x), b = gmma::descriptor(weights);
#pragma unroll
  for (int step = 0; step < kBoxK / 16; ++step)
    gmma::multiply<T, kTile>(sums, a + step * gmma::kStepK, b + step * gmma::kStepK, step > 0 || !first);
}

// Which warpgroup this is, in a register that the compiler knows to be the same for all lanes: descriptors must be.
template <int kGroups>
__device__ __forceinline__ int group_of_warp() {
  if constexpr (kGroups == 1) return 0;
  return __shfl_sync(kFullMask, warp_id() / 4, 0);
}

// One tile: the products of a box are waited for only when the next one's are under way. (One loop over boxes, not one
// over stages around it: with registers of a multiply in flight the compiler is careful at every edge of a loop.)
template <typename T, int kTile, int kGroups>
__device__ __forceinline__ void multiply_tile(Sums<kTile>& sums, const Ring& ring, Position& at, const Args& args) {
  const int group_offset = group_of_warp<kGroups>() * kGroupRows * kBoxRowBytes;
  int last = 0, in_stage = 0;
  for (int box = 0; box < args.num_boxes; ++box) {
    if (in_stage == 0) mbarrier_wait(ring.full(at.slot), at.parity);
    gmma::fence();
    multiply_box<T, kTile>(sums, ring.x_slot(at.slot) + in_stage * ring.x_box + group_offset,
                           ring.weight_slot(at.slot) + in_stage * ring.weight_box, box == 0);
    gmma::commit();
    gmma::wait<1>();
    if (in_stage == 0 && box > 0) release(ring, last);
    if (++in_stage < args.depth && box + 1 < args.num_boxes) continue;
    in_stage = 0;
    last = at.slot;
    at.advance(ring);
  }
  gmma::wait<0>();
  release(ring, last);
  gmma::pin(sums);
}

__device__ __forceinline__ void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
template <typename T>
__device__ __forceinline__ void store_pair(T* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = pack2<T>(x, y);
}

// n % 8 == 0, so eight columns are inside together or outside together.
template <typename T, typename Out, int kTile>
__device__ __forceinline__ void store_tile(const Sums<kTile>& sums, const Args& args, int feature) {
  const int row = warp_id() * 16 + lane_id() / 4, below = row + 8;  // four warps of 16 rows are a warpgroup's 64
  Out* const out = static_cast<Out*>(args.out);
#pragma unroll
  for (int i = 0; i < kTile / 8; ++i) {
    const float* const d = &sums[4 * i];
    const int col = feature + 8 * i + 2 * (lane_id() % 4);
    if (col >= args.n) break;
    float2 bias = make_float2(0, 0);
    if (args.bias != nullptr) bias = unpack2<T>(__ldg(static_cast<const uint32_t*>(args.bias) + col / 2));
    const bool adds = args.bias != nullptr;  // -0 + 0 would be +0
    const float y[4] = {adds ? d[0] + bias.x : d[0], adds ? d[1] + bias.y : d[1], adds ? d[2] + bias.x : d[2],
                        adds ? d[3] + bias.y : d[3]};
    if (row < args.m) store_pair(out + row * args.out_stride + col, y[0], y[1]);
    if (below < args.m) store_pair(out + below * args.out_stride + col, y[2], y[3]);
  }
}

template <typename T, int kTile, int kGroups>
__device__ __forceinline__ void consume(const Args& args, const Ring& ring, int num_tiles, int feature) {
  __syncthreads();
  Position at;
  Sums<kTile> sums;
  for (int i = 0; i < num_tiles; ++i, feature += static_cast<int>(gridDim.x) * kTile) {
    multiply_tile<T, kTile, kGroups>(sums, ring, at, args);
    if (args.f32_out) {
      store_tile<T, float, kTile>(sums, args, feature);
    } else {
      store_tile<T, T, kTile>(sums, args, feature);
    }
  }
}

#endif  // PE_SM90A

template <typename T, int kTile, int kGroups>
__global__ void __launch_bounds__(PE_STREAM_THREADS(kGroups))
    stream_gemm_kernel(const __grid_constant__ CUtensorMap weight_map, const __grid_constant__ CUtensorMap x_map,
                       const __grid_constant__ Args args) {
#if defined(PE_SM90A)
  PE_DYNAMIC_SMEM(unsigned char, smem);
  const Ring ring(smem, args, kTile);
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int rounds = div_ceil(div_ceil(args.n, kTile) - block, blocks);
  if (warp_id() == 4 * kGroups) {
    produce({&weight_map, &x_map, args, ring, kTile}, kGroups, rounds * div_ceil(args.num_boxes, args.depth),
            block * kTile);
  } else {
    consume<T, kTile, kGroups>(args, ring, rounds, block * kTile);
  }
#endif
}

template <typename T, int kTile>
Kernel kernel_of_tile(int groups) {
  constexpr Kernel kKernels[] = {stream_gemm_kernel<T, kTile, 1>, stream_gemm_kernel<T, kTile, 2>,
                                 stream_gemm_kernel<T, kTile, 3>, stream_gemm_kernel<T, kTile, 4>};
  static_assert(sizeof(kKernels) / sizeof(Kernel) == kMaxGroups, "one for each number of warpgroups");
  return groups >= 1 && groups <= kMaxGroups ? kKernels[groups - 1] : nullptr;
}

template <typename T, int... kIndex>
Kernel find_kernel(int tile, int groups, std::integer_sequence<int, kIndex...>) {
  Kernel found = nullptr;
  ((kTiles[kIndex] == tile ? void(found = kernel_of_tile<T, kTiles[kIndex]>(groups)) : void()), ...);
  return found;
}

// Instantiated once per T, in a file of its own.
template <typename T>
Kernel kernel_for(int tile, int groups) {
  return find_kernel<T>(tile, groups, std::make_integer_sequence<int, sizeof(kTiles) / sizeof(kTiles[0])>{});
}

#endif  // __CUDACC__

}  // namespace pe::cuda::stream
