// SPDX-License-Identifier: Apache-2.0
// How tiles of K and V reach the warpgroups of prefill_wgmma.cuh: a third warpgroup fetches them by the copy engine.
// smem: a ring of 9 tiles (22 at D = 64), 144 KiB · each fetching warp brings one slab (16 keys) of every tile
// traffic: a tile of K or V, 64 * D * sizeof(kv) bytes, per 128 rows and 64 keys
//
// Warps that compute ask for nothing: where they copied for themselves, that was a quarter of their time, and the
// items' beginnings another tenth (docs/performance.md). The ring runs on over the borders of items, so the next item's
// tiles arrive while this one ends. Tiles lie in the ring as they are used: K of tile 0, then K of tile i + 1 and V of
// tile i, then V of the last.
#pragma once
#include "cuda/attention/job.cuh"
#include "cuda/attention/kv_maps.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/warpgroup.cuh"
#include "cuda/common/wgmma.cuh"

namespace pe::cuda::attention {

#if defined(PE_WGMMA)

// Of one tile: blocks of 64 columns (wgmma.cuh), [64 rows][64 columns] each.
constexpr int kSwizzleBlockBytes = kTileTokens * kSwizzleRowBytes;

template <int kDim>
struct PrefillMemory {
  static constexpr int kTiles = kPrefillTiles<kDim>, kTileBytes = kTileTokens * kDim * 2;

  unsigned char* tiles;
  float4* running;         // of each computing thread (prefill_wgmma.cuh)
  Job* jobs;               // kLivePrefillJobs: those that the ring may reach over
  uint64_t *full, *empty;  // barriers of each tile
  uint64_t* announced;     // of each job

  __device__ __forceinline__ explicit PrefillMemory(unsigned char* smem)
      : tiles(smem),
        running(reinterpret_cast<float4*>(smem + kTiles * kTileBytes)),
        jobs(reinterpret_cast<Job*>(smem + kTiles * kTileBytes + kRunningBytes<kDim>)),
        full(reinterpret_cast<uint64_t*>(jobs + kLivePrefillJobs<kDim>)),
        empty(full + kTiles),
        announced(empty + kTiles) {}

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < kTiles; ++i) {
      mbarrier_init(full + i, kFetchWarps);
      mbarrier_init(empty + i, kWarps);
    }
    for (int i = 0; i < kLivePrefillJobs<kDim>; ++i) mbarrier_init(announced + i, 1);
    mbarrier_init_fence();
  }
  __device__ __forceinline__ void invalidate_barriers() const {
    for (uint64_t* barrier = full; barrier < announced + kLivePrefillJobs<kDim>; ++barrier)
      mbarrier_invalidate(barrier);
  }
};

// ---- the fetching warpgroup -----------------------------------------------------------------------------------------

template <int kDim>
class PrefillFetcher {
 public:
  __device__ __forceinline__ PrefillFetcher(const RunArgs& args, const KvMaps& maps, const PrefillMemory<kDim>& memory)
      : args_(args), maps_(maps), memory_(memory) {}

  // Items by ticket until none is left. Item n + kLivePrefillJobs takes the place of item n, of which by then nobody
  // knows any more: at least two tiles of each item between have been asked for, more than the ring holds.
  __device__ __forceinline__ void run() {
    for (RingPosition<kLivePrefillJobs<kDim>> at;; at.advance()) {
      Job& job = memory_.jobs[at.slot];
      if (slab() == 0) announce(job, memory_.announced + at.slot);
      named_barrier<kFetchBarrier, kFetchThreads>();
      if (job.kv_head < 0) return;
      fetch(job);
    }
  }

 private:
  static __device__ __forceinline__ int slab() { return warp_id() - kWarps; }

  // The next item's job, as of a warp that has its first rows; with kv_head -1 when there is no item left.
  __device__ __forceinline__ void announce(Job& job, uint64_t* announced) {
    int ticket = 0;
    if (lane_id() == 0) ticket = take_cta_ticket(args_, !taken_);
    taken_ = true;
    ticket = __shfl_sync(kFullMask, ticket, 0);
    if (ticket < args_.plan.header->num_cta_items * args_.num_kv_heads) {
      set_cta_job(args_, args_.plan.cta_items[ticket / args_.num_kv_heads], ticket % args_.num_kv_heads, 0, &job);
    } else if (lane_id() == 0) {
      job.kv_head = -1;
    }
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(announced);
  }

  __device__ __forceinline__ void fetch(const Job& job) {
    const TileRange tiles = job.tiles;
    const KeyRange keys = job.keys;
    int block = 0, blocks = 0;
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      const int ahead = (tile - tiles.begin) % kWarpSize, before = block;
      if (ahead == 0) blocks = load_block(job, tile + lane_id());
      block = __shfl_sync(kFullMask, blocks, ahead);
      request(&maps_.k_columns, keys, tile, job.kv_head, block);
      if (tile > tiles.begin) request(&maps_.v_columns, keys, tile - 1, job.kv_head, before);
    }
    request(&maps_.v_columns, keys, tiles.end - 1, job.kv_head, block);
  }

  // This warp's slab of a tile. Of one that holds no key of the item nothing is fetched.
  __device__ __forceinline__ void request(const BoxMap* map, const KeyRange& keys, int tile, int kv_head, int block) {
    constexpr int kColumnBlocks = kDim / kBoxColumns;
    const int token = tile * kTileTokens + slab() * kSlabTokens;
    const bool held = token < keys.end && token + kSlabTokens > keys.begin;
    mbarrier_wait(memory_.empty + at_.slot, at_.parity ^ 1);
    if (lane_id() == 0) {
      uint64_t* const full = memory_.full + at_.slot;
      mbarrier_expect(full, held ? box_bytes(kDim) : 0);
      unsigned char* const to =
          memory_.tiles + at_.slot * PrefillMemory<kDim>::kTileBytes + slab() * kSlabTokens * kSwizzleRowBytes;
      const int in_block = token & ((1 << args_.block_shift) - 1);
      for (int i = 0; held && i < kColumnBlocks; ++i)
        copy_box_columns(to + i * kSwizzleBlockBytes, map, in_block, i, kv_head, block, full);
    }
    __syncwarp();
    at_.advance();
  }

  // Of a slab; 0 where nothing will be read: only table entries of keys that some row sees are valid.
  __device__ __forceinline__ int load_block(const Job& job, int tile) const {
    const int token = tile * kTileTokens + slab() * kSlabTokens;
    if (tile >= job.tiles.end || !holds_keys(job, token, kSlabTokens)) return 0;
    return __ldg(args_.block_tables + job.table_offset + (token >> args_.block_shift));
  }

  const RunArgs& args_;
  const KvMaps& maps_;
  const PrefillMemory<kDim>& memory_;
  RingPosition<PrefillMemory<kDim>::kTiles> at_;
  bool taken_ = false;  // a ticket
};

// ---- the computing warps' side --------------------------------------------------------------------------------------

// Rows of values that no row of the item sees become zeros, as kv_stream.cuh explains. Each warpgroup does so for
// itself, before it multiplies: the other one's products may still read these very zeros.
template <int kDim>
__device__ __forceinline__ void blank_unseen_rows(const Job& job, int token, unsigned char* values) {
  constexpr int kGroupThreads = kWarpgroupWarps * kWarpSize, kRowVectors = kSwizzleRowBytes / 16;
  if (token >= job.keys.begin && token + kTileTokens <= job.keys.end) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % kGroupThreads; i < kTileTokens * kDim / 8; i += kGroupThreads) {
    const int key = token + i / kRowVectors % kTileTokens;
    if (key < job.keys.begin || key >= job.keys.end) reinterpret_cast<uint4*>(values)[i] = make_uint4(0, 0, 0, 0);
  }
  fence_for_wgmma();
  if (warp_id() < kWarpgroupWarps) {
    named_barrier<kFirstGroupBarrier, kGroupThreads>();
  } else {
    named_barrier<kFirstGroupBarrier + 1, kGroupThreads>();
  }
}

// What run_steps (prefill_wgmma.cuh) asks of a ring.
template <int kDim>
class FetchedTiles {
 public:
  __device__ __forceinline__ explicit FetchedTiles(const PrefillMemory<kDim>& memory) : memory_(memory) {}

  // This warp's job in the next item; false after the last.
  __device__ __forceinline__ bool next_item(const RunArgs& args, Job* job) {
    mbarrier_wait(memory_.announced + item_.slot, item_.parity);
    const Job& first = memory_.jobs[item_.slot];
    if (first.kv_head < 0) return false;
    set_rows_of_warp(args, first, warp_id() * kWarpRows, job);
    item_.advance();
    job_ = job;
    num_tiles_ = job->tiles.end - job->tiles.begin;
    return true;
  }

  __device__ __forceinline__ int num_tiles() const { return num_tiles_; }
  __device__ __forceinline__ unsigned char* keys() const { return tile(keys_); }
  __device__ __forceinline__ unsigned char* values() const { return tile(values_); }

  // Waits for K of tile `step` and V of the one before.
  __device__ __forceinline__ void enter(int step) {
    if (step < num_tiles_) keys_ = await();
    if (step == 0) return;
    values_ = await();
    if (step == 1 || step == num_tiles_)
      blank_unseen_rows<kDim>(*job_, (job_->tiles.begin + step - 1) * kTileTokens, values());
  }
  __device__ __forceinline__ void work_ahead(int) const {}  // others do
  __device__ __forceinline__ void leave_keys(int) const { leave(keys_); }
  __device__ __forceinline__ void leave_values(int) const { leave(values_); }
  // A warpgroup without rows lets tiles go by, through as many barriers as the other one: racecheck goes by their
  // number.
  __device__ __forceinline__ void skip_item() {
    for (int step = 0; step <= num_tiles_; ++step) {
      enter(step);
      if (step < num_tiles_) leave_keys(step);
      if (step > 0) leave_values(step);
    }
  }

 private:
  // Equal in all lanes, and the compiler is to know: descriptors are then made by the uniform datapath.
  __device__ __forceinline__ unsigned char* tile(int slot) const {
    return memory_.tiles + __shfl_sync(kFullMask, slot, 0) * PrefillMemory<kDim>::kTileBytes;
  }
  __device__ __forceinline__ int await() {
    const int slot = at_.slot;
    mbarrier_wait(memory_.full + slot, at_.parity);
    at_.advance();
    return slot;
  }
  __device__ __forceinline__ void leave(int slot) const {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(memory_.empty + slot);
  }

  const PrefillMemory<kDim> memory_;
  const Job* job_ = nullptr;
  RingPosition<PrefillMemory<kDim>::kTiles> at_;
  RingPosition<kLivePrefillJobs<kDim>> item_;
  int num_tiles_ = 0, keys_ = 0, values_ = 0;
};

#endif

}  // namespace pe::cuda::attention
