// SPDX-License-Identifier: Apache-2.0
// How the weight-streaming GEMM cuts a product: numbers with their reasons, and a model of its time that chooses among
// them. Nothing here can change a bit of the result: every output is one sum over k in ascending order whatever the
// tile, the cluster or the ring.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>

#include "pe/core.h"

namespace pe::cuda::stream {

// A box is 64 columns of k: rows of 128 bytes, the widest swizzle of the copy engine. A stage of the ring is one or
// several.
constexpr int kBoxK = 64, kBoxRowBytes = 128;
constexpr int kGroupRows = 64;  // rows of x per warpgroup, the m of wgmma
constexpr int kMaxGroups = 4;
constexpr int64_t kMaxRows = kGroupRows * kMaxGroups;

// Features of a tile, one instruction wide. 128 tiles of 32 are the 4096 of llama's o and down, of 48 its qkv, two
// rounds of 112 its gate_up; 16 spreads SmolLM2's few hundred features over many SMs. For every layer, tiles of 8 were
// slower than of 16, of 128 and 224 (two instructions) no faster than of 112. A thread keeps tile / 2 sums; four
// warpgroups and the producer leave it 120 registers.
constexpr int kTiles[] = {16, 24, 32, 48, 64, 112};

// Boxes per stage: as many as leave the ring this many stages, so that most of it is on its way while one is
// multiplied.
constexpr int kDepths[] = {8, 4, 2, 1};
constexpr int kWantedStages = 5;

constexpr int kMaxStages = 64;  // barriers of the ring fill 1 KiB
constexpr int kBarrierBytes = 1024, kAlignBytes = 1024;
constexpr int kFullRing = 225 << 10;  // of the 227 KiB a block may have
// Leaves room on the SM for a predecessor, or for the next product's block with a ring of its own.
constexpr int kHalfRing = 111 << 10;
// Below these bytes of weights (llama's o) a product lasts hardly longer than its ring takes to fill: what counts is
// that the ring fills early. Above, a deep ring keeps the memory busy. 128 rows of x leave half a ring too few weights.
constexpr int64_t kShortBytes = 40 << 20, kShortRows = 64;

// A weight that the L2 (50 MB) holds beside what else is in use may wait there for a long predecessor to end.
constexpr int64_t kPrefetchedBytes = 40 << 20;

struct Plan {
  int tile = 0, depth = 1;     // depth: boxes per stage
  int ring_bytes = kFullRing;  // at most; stages = what fits
};

struct Shape {
  int64_t m, n, k;
  bool pairs = false;  // n are as many features of gate as of up, and a tile takes as many of one as of the other
};
// Whether a tile's halves begin where the columns of a thread's sums repeat.
constexpr bool pairs_up(int tile) { return tile % 16 == 0; }

// Plans are made for the upper ends of classes of m, so that a kernel is known (and loaded) for all of a class at once;
// a ring that fits the end fits every m of the class.
constexpr int64_t kClassEnds[] = {8, 16, 32, 64, 128, 192, 256};

// As few warpgroups as hold the rows: one too many multiplies and reads its share of shared memory for nothing.
constexpr int groups_of(int64_t m) { return static_cast<int>(div_ceil<int64_t>(m, kGroupRows)); }
// Rows of x in a box: whole swizzle groups of 8.
constexpr int padded_rows(int64_t m) { return static_cast<int>(round_up<int64_t>(m, 8)); }
constexpr int stage_bytes(int64_t m, const Plan& plan) {
  return plan.depth * (plan.tile + padded_rows(m)) * kBoxRowBytes;
}
// The multiplication reads all 64 rows of each warpgroup, of which the last box in the ring has fewer behind it.
constexpr int ring_pad_bytes(int64_t m) { return (groups_of(m) * kGroupRows - padded_rows(m)) * kBoxRowBytes; }
constexpr int64_t fitting_stages(int64_t m, const Plan& plan) {
  return (plan.ring_bytes - kBarrierBytes - kAlignBytes - ring_pad_bytes(m)) / stage_bytes(m, plan);
}
constexpr int stages_of(const Shape& s, const Plan& plan) {
  const int64_t used = div_ceil<int64_t>(s.k / kBoxK, plan.depth);
  return static_cast<int>(std::min<int64_t>({fitting_stages(s.m, plan), kMaxStages, std::max<int64_t>(2, used)}));
}
constexpr int smem_bytes(const Shape& s, const Plan& plan) {
  return kBarrierBytes + kAlignBytes + stages_of(s, plan) * stage_bytes(s.m, plan) + ring_pad_bytes(s.m);
}

constexpr Plan plan_of(const Shape& s, int tile) {
  Plan plan{tile, 1, s.m <= kShortRows && s.n * s.k * 2 <= kShortBytes ? kHalfRing : kFullRing};
  for (const int depth : kDepths) {
    const Plan deeper{tile, depth, plan.ring_bytes};
    if (depth * kBoxK <= s.k && fitting_stages(s.m, deeper) >= kWantedStages) return deeper;
  }
  return plan;
}

// Bytes per ns of an H100: memory as measured with all SMs reading; what one SM draws from it at most, 72 of them
// reaching the whole rate; what enters one SM and its shared memory by their clock of 1.7 GHz, 64 and 128 bytes wide.
// The L2 takes no part: it gives the blocks, which all read the same lines of x, 12 TB/s and more.
constexpr double kMemoryRate = 3000, kSmMemoryRate = kMemoryRate / 72, kSmRate = 64 * 1.7, kSmemRate = 128 * 1.7;
// As measured on 32 SMs whose weights the L2 holds: a box, whose four products follow each other; and a stage, when it
// is a single box. A tile's first and last moments and a launch, roughly.
constexpr double kBoxNs = 92, kStageNs = 185, kTileNs = 300, kLaunchNs = 2000;

// Time of a box in ns while `blocks` run at once: the slowest of four things. Weights from memory; what enters one SM;
// shared memory, which takes both in, gives x to the tensor cores once and the weights once per warpgroup; and the
// steps themselves.
constexpr double box_ns(const Shape& s, const Plan& plan, int64_t blocks) {
  const double w = plan.tile * kBoxRowBytes, x = padded_rows(s.m) * kBoxRowBytes;
  const double smem = (w + x + groups_of(s.m) * (w + kGroupRows * kBoxRowBytes)) / kSmemRate;
  const double memory = std::max(static_cast<double>(blocks) * w / kMemoryRate, w / kSmMemoryRate);
  return std::max({memory, (w + x) / kSmRate, smem, kBoxNs, kStageNs / plan.depth});
}

// Time in ns: rounds in which all `places` work, and one of what is left.
constexpr double model_ns(const Shape& s, const Plan& plan, int places) {
  const int64_t tiles = div_ceil<int64_t>(s.n, plan.tile), rounds = tiles / places, rest = tiles % places;
  const double boxes = static_cast<double>(s.k / kBoxK);
  const double full = kTileNs + boxes * box_ns(s, plan, places), last = kTileNs + boxes * box_ns(s, plan, rest);
  return kLaunchNs + static_cast<double>(rounds) * full + (rest > 0 ? last : 0);
}

inline Shape class_end(const Shape& s) {
  return {*std::lower_bound(std::begin(kClassEnds), std::end(kClassEnds) - 1, s.m), s.n, s.k, s.pairs};
}

constexpr Plan fastest_plan(const Shape& s, int places) {
  Plan best;
  double best_ns = 1e30;
  for (const int tile : kTiles) {
    if (s.pairs && !pairs_up(tile)) continue;
    const Plan plan = plan_of(s, tile);
    const double ns = model_ns(s, plan, places);
    if (stages_of(s, plan) >= 2 && ns < best_ns) best = plan, best_ns = ns;
  }
  return best;
}

// Where it wins over cuBLASLt, as measured on an H100 (docs/performance.md): everywhere below 128 rows, and at 128
// where k is not long (llama's down took 47.9 us there, against 44.4). cuBLASLt's tiles of 128 and of 256 rows take the
// longer the fewer of them there are: to 224 it loses the wide layers, which give every SM a tile, and the short ones,
// whose time is mostly the launch; to 256 the widest alone. Heads it keeps (suspected: while their fp32 results are
// stored, the ring waits). Pairs spare the launch of silu_mul besides, more than streaming loses on any gate_up of k up
// to 4096 at 256 rows (0.9 us of smol's, 1.1 of qwen's at 240): there one kernel is 1.16 to 1.25 times as fast as two.
constexpr bool worthwhile(const Shape& s, bool f32_out) {
  constexpr int64_t kLongK = 4096, kShortK = 1024, kWide = 4096, kWidest = 16384;
  if (s.m < 128) return true;
  if (s.m == 128) return s.k <= kLongK;
  if (s.m > kMaxRows || f32_out) return false;
  if (s.pairs && s.k <= kLongK) return true;
  return s.n >= kWidest || (s.m <= 224 && (s.n >= kWide || s.k <= kShortK));
}

}  // namespace pe::cuda::stream
