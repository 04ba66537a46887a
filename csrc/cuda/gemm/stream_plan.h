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
// In flight per SM: 3 TB/s times 1 us over 132 SMs are 23 KiB; the rest hides the bumps.
constexpr int kEnoughWeightBytes = 40 << 10;

// A weight that the L2 (50 MB) holds beside what else is in use may wait there for a long predecessor to end.
constexpr int64_t kPrefetchedBytes = 40 << 20;

struct Plan {
  int tile = 0, cluster = 1;
  int ring_bytes = kFullRing;  // at most; stages = what fits
};

struct Shape {
  int64_t m, n, k;
};

// Plans are made for the upper ends of classes of m, so that a kernel is known (and loaded) for all of a class at once;
// a ring that fits the end fits every m of the class.
constexpr int64_t kClassEnds[] = {8, 16, 32, 64, 128, 192, 256};

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

// Bytes per ns of an H100: memory and L2 as measured with all SMs reading; shared memory and what enters one SM by its
// clock of 1.7 GHz, 128 and 64 bytes wide; what one SM draws from memory at most, an assumption that asks 96 of them to
// reach the whole rate. The rest is what a launch, a tile's first and last moments and a stage's
// barriers cost, roughly.
constexpr double kMemoryRate = 3000, kL2Rate = 5500, kSmemRate = 128 * 1.7, kSmRate = 64 * 1.7,
                 kSmMemoryRate = kMemoryRate / 96;
constexpr double kStageNs = 60, kTileNs = 300, kClusterNs = 300, kLaunchNs = 2000;

// Time of a stage in ns while `blocks` run at once: the slowest of four things. Weights from memory; weights and x
// through the L2; what enters one SM; and shared memory, which takes both in, gives x to the tensor cores once and the
// weights once per warpgroup.
constexpr double stage_ns(const Shape& s, const Plan& plan, int64_t blocks) {
  const double w = plan.tile * kStageRowBytes, x = padded_rows(s.m, plan.cluster) * kStageRowBytes;
  const double all = static_cast<double>(blocks);
  const double smem = (w + x + groups_of(s.m) * (w + kGroupRows * kStageRowBytes)) / kSmemRate;
  const double memory = std::max(all * w / kMemoryRate, w / kSmMemoryRate);
  return std::max({memory, all * (w + x / plan.cluster) / kL2Rate, (w + x) / kSmRate, smem, kStageNs});
}

// Time in ns: rounds in which all `places` work, and one of what is left.
constexpr double model_ns(const Shape& s, const Plan& plan, int places) {
  const int64_t tiles = div_ceil<int64_t>(s.n, plan.tile), rounds = tiles / places, rest = tiles % places;
  const double stages = static_cast<double>(s.k / kStageK);
  const double full = kTileNs + stages * stage_ns(s, plan, places), last = kTileNs + stages * stage_ns(s, plan, rest);
  return kLaunchNs + (plan.cluster > 1 ? kClusterNs : 0) + static_cast<double>(rounds) * full + (rest > 0 ? last : 0);
}

// Where it wins over cuBLASLt, as measured on an H100 (docs/performance.md): few rows, and features enough that every
// SM has a wide tile. Elsewhere x, which every block reads whole, costs more than the wider reads of weights bring.
constexpr bool worthwhile(const Shape& s) { return s.m <= 32 && s.n >= 6144; }

// The ring that is just deep enough, so that the next kernel's may stand beside it.
constexpr int ring_for(const Shape& s, Plan plan) {
  plan.ring_bytes = kHalfRing;
  return stages_of(s, plan) >= 4 && stages_of(s, plan) * plan.tile * kStageRowBytes >= kEnoughWeightBytes ? kHalfRing
                                                                                                          : kFullRing;
}

}  // namespace pe::cuda::stream
