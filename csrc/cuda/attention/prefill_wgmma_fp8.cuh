// SPDX-License-Identifier: Apache-2.0
// A ring for prefill_wgmma.cuh over a cache in e4m3: what prefill_fp8.cuh does, for whole warpgroups; the same bits.
// smem: 4 steps as they arrive, 4 widened (K, V), 192 KiB at D = 128
// traffic in shared memory: a tile is written and read as it arrives, written once widened, read by each warpgroup:
// 1024 cycles at D = 128, as many as its products take
//
// A warp copies 8 rows of each matrix, each lane reads again what it has copied itself, two steps before the products,
// and writes it widened, in the swizzle that these read. The last step that may still be multiplied while step i + 2 is
// widened is i - 1 (of the warpgroup behind) and the first i + 1 (of the one in front): four places.
#pragma once
#include "cuda/attention/prefill_fp8.cuh"
#include "cuda/attention/prefill_wgmma.cuh"

namespace pe::cuda::attention {

#if defined(PE_WGMMA)

template <int kDim>
struct Fp8WarpgroupMemory {
  static constexpr int kWidened = 4, kArriving = 4;

  struct {
    unsigned char keys[kTileTokens * kDim * 2], values[kTileTokens * kDim * 2];
  } steps[kWidened];
  struct {
    unsigned char keys[kTileTokens * kDim], values[kTileTokens * kDim];
  } arriving[kArriving];
  uint64_t done[2];  // barriers: of even and odd steps
};
template <typename T, int kDim>
__device__ __forceinline__ Fp8WarpgroupMemory<kDim>& fp8_warpgroup_memory(unsigned char* slots) {
  using Format = KvFormat<Fp8<T>, kDim>;
  constexpr int kRoom = Format::smem_bytes(kDeepSlots<Format::kWords>, false, false) - kControlBytes;
  static_assert(sizeof(Fp8WarpgroupMemory<kDim>) + kSwizzleAtomBytes <= kRoom,
                "fits where warps have deep rings; an sm_90 always has room for these");
  const unsigned past = smem_address(slots) % kSwizzleAtomBytes;
  return *reinterpret_cast<Fp8WarpgroupMemory<kDim>*>(slots + (past == 0 ? 0 : kSwizzleAtomBytes - past));
}

template <typename T, int kDim>
class Fp8StepRing {
 public:
  using Memory = Fp8WarpgroupMemory<kDim>;

  __device__ __forceinline__ Fp8StepRing(const RunArgs& args, const Job& job, Memory& memory)
      : args_(args),
        job_(job),
        memory_(memory),
        num_tiles_(job.tiles.end - job.tiles.begin),
        first_(job.tiles.begin * kTileTokens + warp_id() * kRows - job.keys.begin),
        num_keys_(job.keys.end - job.keys.begin) {
    if (threadIdx.x == 0) {
      mbarrier_init(&memory.done[0], kWarps);
      mbarrier_init(&memory.done[1], kWarps);
    }
    next_block_ = load_block(0);
    for (int step = 0; step < kAhead - 1; ++step) request(step);
    cp_async_wait<kAhead - 3>();  // steps 0 and 1 have arrived
    widen(0);
    widen(1);
    request(kAhead - 1);  // in the place of step 0
    fence_for_wgmma();
    sync_workers();
  }

  __device__ __forceinline__ int num_tiles() const { return num_tiles_; }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_.steps[step_ % Memory::kWidened].keys; }
  __device__ __forceinline__ const unsigned char* values() const {
    return memory_.steps[step_ % Memory::kWidened].values;
  }
  // After this all warps are done with step - 2, whose place work_ahead() fills, and have widened this one.
  __device__ __forceinline__ void enter(int step) const {
    if (step >= 2) mbarrier_wait(&memory_.done[step % 2], ((step - 2) / 2) & 1);
  }
  // While the products of the entered step run: this warp's copies of step + 2 have arrived and are widened, then it
  // asks for more.
  __device__ __forceinline__ void work_ahead(int step) {
    cp_async_wait<kAhead - 3>();
    widen(step_ + 2);
    fence_for_wgmma();
    request(step + kAhead);
  }
  __device__ __forceinline__ void leave_keys(int step) {
    if (step == 0) leave_values(0);  // there were none
  }
  // After the products of a step. Two barriers take turns, because a warpgroup may arrive for this step before the
  // other has waited for the last; it cannot arrive for the next but one before that.
  __device__ __forceinline__ void leave_values(int step) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(&memory_.done[step % 2]);
    ++step_;
  }
  // A warpgroup without rows still does its share for the others.
  __device__ __forceinline__ void only_fill() {
    for (int step = 0; step < num_tiles_; ++step) {
      enter(step);
      work_ahead(step);
      leave_values(step);
    }
  }
  __device__ __forceinline__ void close() {
    sync_workers();
    if (threadIdx.x == 0) {
      mbarrier_invalidate(&memory_.done[0]);
      mbarrier_invalidate(&memory_.done[1]);
    }
  }

 private:
  static constexpr int kRows = 8;                       // of a tile, this warp's
  static constexpr int kAhead = Memory::kArriving + 1;  // step i + kAhead takes the place of i + 1, widened before
  static constexpr int kRowVectors = kDim / 16;         // of 16 elements
  static constexpr int kLaneRows = kWarpSize / kRowVectors, kCount = kRows / kLaneRows;  // a lane's vectors: kCount
  static_assert(kTileTokens == kWarps * kRows && kSlabTokens % kRows == 0, "a warp's rows lie in one slab");
  static_assert(kAhead >= 4, "work_ahead and the constructor wait for two steps of at least three");

  static __device__ __forceinline__ int lane_row() { return lane_id() / kRowVectors; }
  static __device__ __forceinline__ int lane_vector() { return lane_id() % kRowVectors; }

  __device__ __forceinline__ int first_key(int tile) const { return first_ + tile * kTileTokens; }
  // 0 where nothing will be read: only table entries of keys that some row sees are valid.
  __device__ __forceinline__ int load_block(int tile) const {
    const int key = first_key(tile);
    if (tile >= num_tiles_ || key >= num_keys_ || key + kRows <= 0) return 0;
    return __ldg(args_.block_tables + job_.table_offset + ((job_.keys.begin + key) >> args_.block_shift));
  }

  // This lane's vectors lie one after another with those of the other lanes. Keys that no row sees become zeros.
  __device__ __forceinline__ void copy_tile(unsigned char* tile_bytes, int tile, const void* cache) const {
    const uint16_t* const from = static_cast<const uint16_t*>(cache) + offset_;
    unsigned char* const to = tile_bytes + warp_id() * kRows * kDim + lane_id() * 16;
    const int key = first_key(tile) + lane_row();
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const bool valid = static_cast<unsigned>(key + kLaneRows * j) < static_cast<unsigned>(num_keys_);
      cp_async_16_zfill(to + j * kWarpSize * 16, from + j * kLaneRows * args_.token_stride, valid);
    }
  }
  __device__ __forceinline__ void request(int step) {
    auto& slot = memory_.arriving[step % Memory::kArriving];
    if (step >= 1 && step <= num_tiles_) copy_tile(slot.values, step - 1, args_.v);
    const int64_t in_block = (job_.keys.begin + first_key(step)) & ((1 << args_.block_shift) - 1);
    offset_ = next_block_ * args_.block_stride + job_.head_offset + (in_block + lane_row()) * args_.token_stride +
              lane_vector() * 8;
    next_block_ = load_block(step + 1);
    if (step < num_tiles_) copy_tile(slot.keys, step, args_.k);
    cp_async_commit();  // also when empty: groups are counted
  }

  __device__ __forceinline__ void widen(int step) const {
    const auto& from = memory_.arriving[step % Memory::kArriving];
    auto& to = memory_.steps[step % Memory::kWidened];
    if (step < num_tiles_) widen_tile<true>(from.keys, to.keys);
    if (step >= 1 && step <= num_tiles_) widen_tile<false>(from.values, to.values);
  }
  // Word by word: a choice between two vectors would go through local memory.
  static __device__ __forceinline__ uint4 choose(bool first, const uint4& a, const uint4& b) {
    return make_uint4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
  }
  template <bool kKeys>
  __device__ __forceinline__ void widen_tile(const unsigned char* arrived, unsigned char* widened) const {
    const unsigned char* const from = arrived + warp_id() * kRows * kDim + lane_id() * 16;
    // Of the two vectors that become of one, lanes of the second block write the second first: so the 8 lanes of a
    // phase write to 8 different bank groups.
    constexpr int kBlockVectors = kSwizzleColumns / 8;
    const int vector = 2 * lane_vector(), block = vector / kBlockVectors, swap = block % 2;
    unsigned char* const rows = widened + block * kSwizzleBlockBytes + warp_id() * kSwizzleAtomBytes;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int row = lane_row() + kLaneRows * j;
      uint4 wide[2];
      widen16<T, kKeys>(load16(from + j * kWarpSize * 16), wide);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = (vector % kBlockVectors + (i ^ swap)) ^ row;
        store16(rows + row * kSwizzleRowBytes + place * 16, choose(swap != 0, wide[i ^ 1], wide[i]));
      }
    }
  }

  const RunArgs& args_;
  const Job& job_;
  Memory& memory_;
  const int num_tiles_, first_, num_keys_;
  int64_t offset_ = 0;  // of this lane's vectors in the caches: of the tile whose K was asked for last, V comes next
  int next_block_;
  int step_ = 0;  // being worked on
};

template <typename T, int kDim>
__device__ __forceinline__ void run_fp8_warpgroups(const RunArgs& args, const Job& job, unsigned char* slots) {
  using Format = KvFormat<Fp8<T>, kDim>;
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim, 2, Format::kQuads>(args, job, q);
  Fp8StepRing<T, kDim> ring(args, job, fp8_warpgroup_memory<T, kDim>(slots));
  if (job.tile_rows > warp_id() / kWarpgroupWarps * kWarpgroupRows) {
    HeldState<kDim> running;
    run_steps<Format, kDim>(args, job, q, ring, running);
  } else {
    ring.only_fill();
  }
  ring.close();
}

#endif

// A CTA's item that its warps fetch for themselves, by the fastest way this GPU has.
template <typename T, int kDim>
struct CtaItem {
  static __device__ __forceinline__ void run(const RunArgs& args, const Job& job, unsigned char* slots) {
    run_cta_item<T, kDim>(args, job, slots);
  }
};
#if defined(PE_WGMMA)
template <typename T, int kDim>
struct CtaItem<Fp8<T>, kDim> {
  static __device__ __forceinline__ void run(const RunArgs& args, const Job& job, unsigned char* slots) {
    run_fp8_warpgroups<T, kDim>(args, job, slots);
  }
};
#endif

}  // namespace pe::cuda::attention
