// SPDX-License-Identifier: Apache-2.0
// The numbers of paged attention, each with its reason. What fixes the bits of a result (kChunkTokens, kTileTokens,
// kSlabTokens and the order of the products) is marked so; everything else only decides who computes what and when.
#pragma once
#include "pe/paged_attention.h"

namespace pe::cuda::attention {

// ---- fixes the bits -----------------------------------------------------------------------------------------------

// Keys per step of the second product (the k of m16n8k16). The smallest block_size, so one slab lies in one block.
constexpr int kSlabTokens = 16;
constexpr int kTileSlabs = kTileTokens / kSlabTokens;
constexpr int kChunkTiles = kChunkTokens / kTileTokens;
constexpr int kChunkSlabs = kChunkTokens / kSlabTokens;

// ---- shapes of work -----------------------------------------------------------------------------------------------

// Packed rows of one warp: the m of m16n8k16. Row r of a sequence is query token r / group, query head r % group.
constexpr int kWarpRows = 16;
// A lane holds rows of both halves of the 16. Up to 8 rows (decode of groups up to 8) the second half is not computed,
// only multiplied along: half the softmax, and a quarter of the registers.
constexpr int kHalfRows = 8;
// Two warps per scheduler: one's softmax runs under the other's products. The registers of two accumulators (chunk and
// running) at head_dim 128 leave no room for more.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Rows of a tile that a whole CTA works on: K and V cross from L2 once per 128 rows. With 64 rows, 350 TFLOP/s would
// ask 5.4 TB/s of the L2, about all it has.
constexpr int kCtaRows = kWarps * kWarpRows;
// Up to here a sequence's rows go to single warps (decode and short drafts, memory-bound: two warps read the same K and
// V, the second time from L2); beyond, a CTA shares each tile of K and V.
constexpr int kMaxRowsOnWarps = 2 * kWarpRows;

// ---- shared memory ------------------------------------------------------------------------------------------------

// A row of K or V in shared memory is padded to an odd number of 16-byte vectors: the 8 rows that one ldmatrix phase
// reads then lie in 8 different bank groups, for every head_dim, and all offsets are immediates (a XOR swizzle costs
// address registers).
template <int kDim>
constexpr int kRowBytes = (kDim / 8 | 1) * 16;
template <int kDim>
constexpr int kSlabBytes = kSlabTokens * kRowBytes<kDim>;
template <int kDim>
constexpr int kTileBytes = kTileTokens * kRowBytes<kDim>;

// Ring of K and V tiles of a CTA: two tiles of each, so that two of the four arrive while one is computed on.
constexpr int kCtaStages = 4;

// Ring of slabs of one warp. Deep: about 25 KiB, of which all but one slab is in flight: 8 warps x 21 KiB per SM is
// seven times what 3.35 TB/s times 0.7 us asks for, so that a nearly empty GPU (batch 1) is fast too. Shallow: what
// fits 99 KiB (sm_86, sm_89, sm_120).
constexpr int kDeepRingBytes = 26 << 10;
constexpr int kShallowSlots = 2;
template <int kDim>
constexpr int kDeepSlots = kDeepRingBytes / kSlabBytes<kDim>;

// Behind the rings: each warp's job (job.cuh), then the CTA's ticket.
constexpr int kJobBytes = 128;
constexpr int kControlBytes = kWarps * kJobBytes + 16;
template <int kDim>
constexpr int ring_bytes(int num_slots) {
  const int warps = kWarps * num_slots * kSlabBytes<kDim>, cta = kCtaStages * kTileBytes<kDim>;
  return warps > cta ? warps : cta;
}

// A CTA that decodes: a ring of stages, K and V of 128 keys; a warp for each of the stage's slabs, and for each 16
// columns of the accumulator. At D = 128 three stages, two of them, 136 KiB, in flight per SM: four times what 3.35
// TB/s times 1.2 us asks for, so the ring also spans the change from one item to the next.
constexpr int kStageSlabs = kWarps;
constexpr int kStageTiles = kStageSlabs / kTileSlabs;
template <int kDim>
constexpr int kStageBytes = 2 * kStageSlabs * kSlabBytes<kDim>;
constexpr int kStageRoom = 205 << 10;
template <int kDim>
constexpr int kStages = kStageRoom / kStageBytes<kDim>;
// Items that the ring may reach over: the one computed on, one for each stage ahead.
template <int kDim>
constexpr int kLiveJobs = kStages<kDim> + 1;
// What the warps tell each other about a stage: weights as fragments, maxima [slab][row], sums [slab][row][lane].
constexpr int kStageNotesBytes = kStageSlabs * (32 * 16 + kWarpRows * 4 + kWarpRows * 16);
template <int kDim>
constexpr int kDecodeCtaBytes =
    kStages<kDim> * kStageBytes<kDim> + kStageNotesBytes + kLiveJobs<kDim> * kWarps * kJobBytes;
template <int kDim>
constexpr bool kDecodesByCta = kDim / 16 <= kWarps && kStages<kDim> >= 3;

// Pairs of warps whose rings the copy engine fills (decode_boxes.cuh; sm_90), with tiles of K and tiles of V, rows of
// kWords 16-bit words. Half of what is on its way in all rings covers 3.35 TB/s times 1.5 us five times, and lets a
// pair that is left alone at the end of a step run at the speed of its arithmetic.
constexpr int kBoxPairs = 4, kBoxRingBytes = 48 << 10;
template <int kWords>
constexpr bool kTakesBoxes = kWords == 32 || kWords == 64 || kWords == 128;
template <int kWords>
constexpr int kBoxGroups = kBoxRingBytes / (kTileTokens * kWords * 2);
// An item takes at least two groups of the ring, and one is being computed on.
template <int kWords>
constexpr int kLiveBoxJobs = kBoxGroups<kWords> / 2 + 2;
template <int kWords>
constexpr int kPairControlBytes = kLiveBoxJobs<kWords> * kJobBytes + 2 * kBoxGroups<kWords> * 8;
template <int kWords>
constexpr int kPairBytes = kBoxPairs * (kBoxRingBytes + kPairControlBytes<kWords>);

// Warpgroups that compute while a third one fetches (prefill_ring.cuh; sm_90a): a ring of tiles, K and V in the order
// of their use. Nine at D = 128: two of them being computed on by each warpgroup, one of which may be a step ahead of
// the other, and the rest two steps of an L2 under load. Behind it the accumulators of all chunks before the present
// one (prefill_wgmma.cuh): 240 registers have no room for them.
constexpr int kFetchWarps = 4, kFetchThreads = kFetchWarps * 32;
static_assert(kFetchWarps == kTileSlabs, "each brings one slab of every tile");
// Of a thread, where the kernel began with 168, what 384 of them can have.
constexpr int kFetchRegisters = 24, kWorkRegisters = 240;
constexpr int kPrefillRoom = 208 << 10;
template <int kDim>
constexpr int kRunningBytes = kCtaRows * kDim * 4;
template <int kDim>
constexpr int kPrefillTiles = (kPrefillRoom - kRunningBytes<kDim>) / (kTileTokens * kDim * 2);
// An item takes at least two tiles of the ring; one is being computed on, and the next one known.
template <int kDim>
constexpr int kLivePrefillJobs = kPrefillTiles<kDim> / 2 + 2;
template <int kDim>
constexpr int kPrefillBytes = kPrefillRoom + kLivePrefillJobs<kDim> * kJobBytes +
                              round_up(8 * (2 * kPrefillTiles<kDim> + kLivePrefillJobs<kDim>), 16);

// Barriers of parts of a CTA: those that compute, those that fetch, each computing warpgroup.
constexpr int kWorkersBarrier = 1, kFetchBarrier = 2, kFirstGroupBarrier = 3, kBlockBarrier = 5;

template <int kDim>
constexpr int smem_bytes(int num_slots, bool by_cta, bool by_boxes) {
  int most = ring_bytes<kDim>(num_slots);
  if (by_cta && kDecodeCtaBytes<kDim> > most) most = kDecodeCtaBytes<kDim>;
  if (by_boxes && kPairBytes<kDim> > most) most = kPairBytes<kDim>;
  if (by_boxes && kPrefillBytes<kDim> > most) most = kPrefillBytes<kDim>;
  return most + kControlBytes;
}

// ---- schedule -----------------------------------------------------------------------------------------------------

// One unit of work is a chunk of one kv head. An SM takes about as long for a chunk of a full CTA tile (6 us of
// products) as for a chunk of a warp (131 KB at 1 / 132 of the bandwidth), so both count 1.
//
// A decode stays whole up to twice the average load of a warp: what is longer would keep the others waiting at the end,
// and more pieces are merged more (32 x 8192 by pairs: 361 us whole, 386 in two pieces). Then it is cut to pieces of
// the average. Where CTAs decode, a piece is at most a quarter of the average load of a CTA, so that they end together;
// they do where there is hardly a chunk for each and, if warps are not paired, where the longest tile is kLongTile
// times the average load of a warp.
constexpr int kDecodeSlack = 2, kDecodePiecesPerCta = 4, kLongTile = 16;
// A CTA's piece may exceed the average load of a CTA by a quarter (5 / 4) before it is split.
constexpr int kCtaSlackNum = 5, kCtaSlackDen = 4;
// Length classes of pieces, longest first: one per lane of a warp, which sums them up.
constexpr int kNumBuckets = 32;

// Workers among which decodes are shared out.
constexpr int decoders_per_cta(bool by_boxes) { return by_boxes ? kBoxPairs : kWarps; }

// Sequences that begin with the same chunks read them once (shared_prefix.cuh) where at least kMinSharers do: a CTA's
// chunk takes about as long as a warp's, and so few rows leave most of its products empty. And only where the step as a
// whole is spared kMinSavedChunks chunks per CTA, 11 us of reading: what it costs is that members wait for the group.
constexpr int kMinSharers = 4, kMinSavedChunks = 2;
// Groups of a step: 1024 sequences in eights. And the rounds in which they are found: sequences that share less than
// their group chose to share have another chance among themselves.
constexpr int kMaxGroups = 128, kGroupRounds = 3;

// Partial results: (max, sum, acc[head_dim]) in fp32 per row and chunk. Past this, tiles are worked on unsplit (slower,
// same bits). The same again for the chunks that groups share.
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;

}  // namespace pe::cuda::attention
