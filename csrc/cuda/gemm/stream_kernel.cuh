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
//
// kPairs: y[m, n] = silu(gate) * up, with gate's rows first in W [2 n, k]. A tile is kTile / 2 features of both: the
// copy engine sees W as [k / 64, 2, n, 64] and puts the same features of either half one behind the other, so that one
// product makes both, and a thread's sums hold them kTile / 2 columns apart. They are rounded to T before silu_mul's
// arithmetic (silu.cuh): the bits of linear and silu_mul, without 4 m n elements on their way through the L2.
#pragma once
#include "cuda/common/gmma_gemm.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/common/warpgroup.cuh"
#include "cuda/elementwise/silu.cuh"
#include "cuda/gemm/stream_args.h"

namespace pe::cuda::stream {

// Code for other targets than sm_90a does nothing, and says so: its kernels admit no block of our size.
#if defined(__CUDA_ARCH__) && !defined(PE_SM90A)
#define PE_STREAM_THREADS(groups) kWarpSize
#else
#define PE_STREAM_THREADS(groups) threads_of(groups)
#endif

// Features of the result that a tile makes.
template <int kTile, bool kPairs>
constexpr int kTileFeatures = kPairs ? kTile / 2 : kTile;

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
  int feature, box = 0;  // feature: of the result
  __device__ void advance(const Args& args, int tile_features) {
    if ((box += args.depth) < args.num_boxes) return;
    box = 0;
    feature += static_cast<int>(gridDim.x) * tile_features;
  }
};

template <bool kPairs>
struct Producer {
  const CUtensorMap *weight_map, *x_map;
  const Args& args;
  const Ring& ring;
  int tile_features;

  __device__ void load_weights(const Position& at, const Walk& walk) const {
    mbarrier_expect(ring.full(at.slot), ring.weight_bytes + ring.x_bytes);
    const SmemAddress to = ring.weight_slot(at.slot), barrier = ring.full(at.slot);
    if constexpr (kPairs) {
      gmma::copy_pairs(to, weight_map, walk.feature, walk.box, barrier, gmma::kEvictFirst);
    } else {
      gmma::copy_boxes(to, weight_map, walk.feature, walk.box, barrier, gmma::kEvictFirst);
    }
  }
  __device__ void prefetch_weights(const Walk& walk) const {
    if constexpr (kPairs) {
      gmma::prefetch_pairs(weight_map, walk.feature, walk.box);
    } else {
      gmma::prefetch_boxes(weight_map, walk.feature, walk.box);
    }
  }
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

// Where the producer and the consumers meet once, each on a way of its own (__syncthreads is for all on one way; with
// the first half of the producer's before it, its second behind, the kernel was up to half slower).
template <int kGroups>
__device__ __forceinline__ void sync_ring() {
  named_barrier<1, PE_STREAM_THREADS(kGroups)>();
}

// Weights depend on no kernel before, so a ring full of them is asked for before anything is waited for. The successor
// is released before that wait too: what it may read before its own wait is what no kernel of a step writes.
template <int kGroups, bool kPairs>
__device__ inline void produce(const Producer<kPairs>& p, int num_steps, int first_feature) {
  const bool leads = lane_id() == 0;
  const int ahead = min(num_steps, p.ring.num_stages);
  Position weights_at;
  Walk weights{first_feature};
  if (leads) {
    gmma::prefetch_map(p.weight_map);
    gmma::prefetch_map(p.x_map);
    init_barriers(p.ring, kGroups);
    for (int i = 0; i < ahead; ++i, weights.advance(p.args, p.tile_features), weights_at.advance(p.ring))
      p.load_weights(weights_at, weights);
  }
  sync_ring<kGroups>();  // with the consumers, who find the barriers there
  if (!leads) return;
  release_successor();
  const int prefetched = min(num_steps, ahead + p.args.num_prefetched);
  for (int i = ahead; i < prefetched; ++i, weights.advance(p.args, p.tile_features)) p.prefetch_weights(weights);
  wait_for_predecessor();
  Position at;
  Walk walk{first_feature};
  for (int i = 0; i < num_steps; ++i, walk.advance(p.args, p.tile_features), at.advance(p.ring)) {
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

// The products as linear stores them, then silu_mul of them.
template <typename T>
__device__ __forceinline__ void store_gated_pair(T* to, const float* gate, const float* up) {
  const float2 g = unpack2<T>(pack2<T>(gate[0], gate[1])), u = unpack2<T>(pack2<T>(up[0], up[1]));
  store_pair(to, u.x * silu(g.x), u.y * silu(g.y));
}

template <typename T, int kTile>
__device__ __forceinline__ void store_gated_tile(const Sums<kTile>& sums, const Args& args, int feature) {
  static_assert(pairs_up(kTile), "a thread holds both of a pair only when the halves begin at multiples of 8 columns");
  const int row = warp_id() * 16 + lane_id() / 4, below = row + 8;
  T* const out = static_cast<T*>(args.out);
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i) {
    const float *const gate = &sums[4 * i], *const up = &sums[4 * i + kTile / 4];
    const int col = feature + 8 * i + 2 * (lane_id() % 4);
    if (col >= args.n) break;
    if (row < args.m) store_gated_pair(out + row * args.out_stride + col, gate, up);
    if (below < args.m) store_gated_pair(out + below * args.out_stride + col, gate + 2, up + 2);
  }
}

template <typename T, int kTile, int kGroups, bool kPairs>
__device__ __forceinline__ void consume(const Args& args, const Ring& ring, int num_tiles, int feature) {
  sync_ring<kGroups>();
  Position at;
  Sums<kTile> sums;
  for (int i = 0; i < num_tiles; ++i, feature += static_cast<int>(gridDim.x) * kTileFeatures<kTile, kPairs>) {
    multiply_tile<T, kTile, kGroups>(sums, ring, at, args);
    if constexpr (kPairs) {
      store_gated_tile<T, kTile>(sums, args, feature);
    } else if (args.f32_out) {
      store_tile<T, float, kTile>(sums, args, feature);
    } else {
      store_tile<T, T, kTile>(sums, args, feature);
    }
  }
}

#endif  // PE_SM90A

template <typename T, int kTile, int kGroups, bool kPairs>
__global__ void __launch_bounds__(PE_STREAM_THREADS(kGroups))
    stream_gemm_kernel(const __grid_constant__ CUtensorMap weight_map, const __grid_constant__ CUtensorMap x_map,
                       const __grid_constant__ Args args) {
#if defined(PE_SM90A)
  PE_DYNAMIC_SMEM(unsigned char, smem);
  const Ring ring(smem, args, kTile);
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  constexpr int kFeatures = kTileFeatures<kTile, kPairs>;
  const int rounds = div_ceil(div_ceil(args.n, kFeatures) - block, blocks);
  if (warp_id() == 4 * kGroups) {
    produce<kGroups>(Producer<kPairs>{&weight_map, &x_map, args, ring, kFeatures},
                     rounds * div_ceil(args.num_boxes, args.depth), block * kFeatures);
  } else {
    consume<T, kTile, kGroups, kPairs>(args, ring, rounds, block * kFeatures);
  }
#endif
}

template <typename T, int kTile, bool kPairs>
Kernel kernel_of_tile(int groups) {
  if constexpr (!kPairs || pairs_up(kTile)) {
    constexpr Kernel kKernels[] = {stream_gemm_kernel<T, kTile, 1, kPairs>, stream_gemm_kernel<T, kTile, 2, kPairs>,
                                   stream_gemm_kernel<T, kTile, 3, kPairs>, stream_gemm_kernel<T, kTile, 4, kPairs>};
    static_assert(sizeof(kKernels) / sizeof(Kernel) == kMaxGroups, "one for each number of warpgroups");
    if (groups >= 1 && groups <= kMaxGroups) return kKernels[groups - 1];
  }
  return nullptr;
}

template <typename T, bool kPairs, int... kIndex>
Kernel find_kernel(int tile, int groups, std::integer_sequence<int, kIndex...>) {
  Kernel found = nullptr;
  ((kTiles[kIndex] == tile ? void(found = kernel_of_tile<T, kTiles[kIndex], kPairs>(groups)) : void()), ...);
  return found;
}

// Instantiated once for each T and kPairs, in a file of its own.
template <typename T, bool kPairs>
Kernel kernel_for(int tile, int groups) {
  return find_kernel<T, kPairs>(tile, groups, std::make_integer_sequence<int, sizeof(kTiles) / sizeof(kTiles[0])>{});
}

}  // namespace pe::cuda::stream
