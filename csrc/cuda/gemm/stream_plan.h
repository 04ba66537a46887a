// SPDX-License-Identifier: Apache-2.0
// How the weight-streaming GEMM cuts a product: numbers with their reasons, and a model of its time that chooses among
// them. Nothing here can change a bit of the result: every output is one sum over k in ascending order whatever the
// tile, the cluster or the ring.
#pragma once
#include <algorithm>
#include <cstdint>

#include "pe/core.h"

namespace pe::cuda::stream {

// One stage of the ring is 64 columns of k: rows of 128 bytes, the widest swizzle of the copy engine.
constexpr int kStageK = 64, kStageRowBytes = 128;
constexpr int kGroupRows = 64;  // rows of x per warpgroup, the m of wgmma
constexpr int kMaxGroups = 4;
constexpr int64_t kMaxRows = kGroupRows * kMaxGroups;

// Features of a tile. 128 tiles (a number that clusters of 4 can place on 132 SMs) of 32 are the 4096 of llama's o and
// down, of 48 its qkv, of 224 its gate_up; the small ones spread SmolLM2's few hundred features over many SMs. A tile
// of 224 is two instructions of 112.
constexpr int kTiles[] = {8, 16, 24, 32, 48, 64, 112, 128, 224};
// A thread keeps tile / 2 sums. Four warpgroups and the producer leave it 120 registers.
constexpr bool has_kernel(int tile, int groups) { return tile <= (groups == kMaxGroups ? 128 : 224); }

// Blocks of a cluster fetch x once together. At 132 x 8 KiB per stage of 64 rows x alone would take the L2's bandwidth.
constexpr int kClusters[] = {1, 2, 4};

constexpr int kMaxStages = 64;  // barriers of the ring fill 1 KiB
constexpr int kBarrierBytes = 1024, kAlignBytes = 1024;
constexpr int kFullRing = 225 << 10;  // of the 227 KiB a block may have
// Two blocks on an SM: the next product's weights are on their way while this one ends.
constexpr int kHalfRing = 111 << 10;
// In flight per SM: 3 TB/s times 1 us over 132 SMs are 23 KiB; twice that hides the bumps.
constexpr int kEnoughWeightBytes = 46 << 10;

struct Plan {
  int tile = 0, cluster = 1;
  int ring_bytes = kFullRing;  // at most; stages = what fits
};

struct Shape {
  int64_t m, n, k;
};

constexpr int groups_of(int64_t m) { return m <= 64 ? 1 : m <= 128 ? 2 : 4; }
// Rows of x in a stage: whole swizzle groups of 8, the same number from each block of the cluster.
constexpr int padded_rows(int64_t m, int cluster) { return static_cast<int>(round_up<int64_t>(m, 8 * cluster)); }
constexpr int stage_bytes(int64_t m, const Plan& plan) {
  return (plan.tile + padded_rows(m, plan.cluster)) * kStageRowBytes;
}
// The multiplication reads all 64 rows of each warpgroup, of which the last stage in the ring has fewer behind it.
constexpr int ring_pad_bytes(int64_t m, const Plan& plan) {
  return (groups_of(m) * kGroupRows - padded_rows(m, plan.cluster)) * kStageRowBytes;
}
constexpr int stages_of(const Shape& s, const Plan& plan) {
  const int64_t fit =
      (plan.ring_bytes - kBarrierBytes - kAlignBytes - ring_pad_bytes(s.m, plan)) / stage_bytes(s.m, plan);
  return static_cast<int>(std::min<int64_t>({fit, kMaxStages, std::max<int64_t>(2, s.k / kStageK)}));
}
constexpr int smem_bytes(const Shape& s, const Plan& plan) {
  return kBarrierBytes + kAlignBytes + stages_of(s, plan) * stage_bytes(s.m, plan) + ring_pad_bytes(s.m, plan);
}

// Bytes per ns. L2 to all SMs, one SM's shared memory and what one SM can draw, all measured on an H100.
constexpr double kMemoryRate = 3000, kL2Rate = 5500, kSmemRate = 128 * 1.7, kSmRate = 70;
constexpr double kStageNs = 60, kTileNs = 300, kClusterNs = 300, kLaunchNs = 2000;

// Time in ns. `places` is the number of blocks that run at once. In a stage the slowest of four things counts: weights
// from memory, weights and x through the L2, what enters one SM, and shared memory, which takes both in, gives x to the
// tensor cores once and the weights once per warpgroup.
constexpr double model_ns(const Shape& s, const Plan& plan, int places) {
  const int64_t tiles = div_ceil<int64_t>(s.n, plan.tile), blocks = std::min<int64_t>(tiles, places);
  const int64_t rounds = div_ceil<int64_t>(tiles, places);
  const double w = plan.tile * kStageRowBytes, x = padded_rows(s.m, plan.cluster) * kStageRowBytes;
  const double memory = blocks * w / kMemoryRate, l2 = blocks * (w + x / plan.cluster) / kL2Rate;
  const double smem = (w + x + groups_of(s.m) * (w + kGroupRows * kStageRowBytes)) / kSmemRate;
  const double stage = std::max({memory, l2, smem, (w + x) / kSmRate, kStageNs});
  return kLaunchNs + (plan.cluster > 1 ? kClusterNs : 0) +
         static_cast<double>(rounds) * (kTileNs + stage * static_cast<double>(s.k / kStageK));
}
constexpr double floor_ns(const Shape& s) { return static_cast<double>(2 * s.n * s.k) / kMemoryRate; }

// cuBLASLt takes 1.2 to 1.4 times the floor on llama's layers and never less than 3.6 us. What the model does not see
// below that is left to it.
constexpr double kLibraryOverFloor = 1.2, kLibraryLeastNs = 3600;
constexpr bool worthwhile(const Shape& s, double model) {
  return model <= std::max(kLibraryLeastNs, kLibraryOverFloor * floor_ns(s) + kLaunchNs);
}

// The ring that is just deep enough, so that the next kernel's may stand beside it.
constexpr int ring_for(const Shape& s, Plan plan) {
  plan.ring_bytes = kHalfRing;
  return stages_of(s, plan) >= 4 && stages_of(s, plan) * plan.tile * kStageRowBytes >= kEnoughWeightBytes ? kHalfRing
                                                                                                          : kFullRing;
}

}  // namespace pe::cuda::stream
