// SPDX-License-Identifier: Apache-2.0
// paged attention, one CTA's share of decoding: up to 16 packed rows of one sequence and kv head after the other.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D] or partial rows; D % 16 == 0, D <= 128; H % HK == 0
// 8 warps on one stage of 128 keys: first each makes the scores of one slab of 16 keys, then each multiplies all of V's
// slabs for 16 columns · smem: ring of 3 stages of K and V (5 at D = 64), 204 KiB · 3 barriers a stage
// traffic: chunks * 256 * D * 2 * sizeof(kv) read once; G flop/byte (G = H/HK, bf16) -> HBM-bound
// floor: S=64, len=2048, HK=8, D=128, bf16: 537 MB = 160 us at 3.35 TB/s; a stage of 68 KiB = 2.7 us of an SM's share.
// Measured: 209 us; at D = 64 a stage takes longer than its share of the memory (docs/performance.md)
//
// The ring runs on over the borders of items: while one is computed on, the next is already being read.
//
// The same bits as a warp alone makes (decode.cuh): a score does not know its neighbours; maxima are exact in any
// order; sums are taken slab by slab; and each column of the accumulator goes through the same chain of rescalings and
// products.
#pragma once
#include "cuda/attention/combine.cuh"
#include "cuda/attention/kv_stream.cuh"

namespace pe::cuda::attention {

// What the warps tell each other about one stage.
struct StageNotes {
  uint4 weights[kStageSlabs][kWarpSize];  // of each slab, as fragments
  float max[kStageSlabs][kWarpRows];
  float sums[kStageSlabs][kWarpRows][4];  // by the lanes that hold them
};

// The CTA's way through the items: takes tickets, keeps the jobs of items that are read or computed on, and reads
// ahead. All threads call everything. A stage is requested in two parts, so that its copies are issued between other
// work, then fetch_ticket; barriers lie between request_keys and fetch_ticket, and between fetch_ticket and the next
// request_keys.
template <typename T, int kDim>
class DecodeItems {
 public:
  __device__ __forceinline__ DecodeItems(const RunArgs& args, unsigned char* smem, int* ticket)
      : args_(args), smem_(smem), ticket_(ticket), stream_(args) {
    num_tickets_ = args.plan.header->num_warp_items * args.num_kv_heads;
    for (int i = 0; i < kStages<kDim> - 1; ++i) {
      sync_workers();
      fetch_ticket();
      sync_workers();
      request_keys();
      request_values();
    }
    sync_workers();
    fetch_ticket();
  }

  // The job of the item number `item` that this CTA takes; nullptr after the last.
  __device__ __forceinline__ const Job* job(int item) const { return item < num_jobs_ ? &slot_of_job(item) : nullptr; }

  // The stage that is next in line, K and V; arrived for all warps after this.
  __device__ __forceinline__ const unsigned char* next_stage() {
    cp_async_wait<kStages<kDim> - 2>();
    sync_workers();  // all warps' copies have arrived, and all warps are past the stage before
    const unsigned char* stage = smem_ + next_ * kStageBytes<kDim>;
    next_ = next_ + 1 == kStages<kDim> ? 0 : next_ + 1;
    return stage;
  }

  // Thread 0 takes the ticket of the next item when it will be needed.
  __device__ __forceinline__ void fetch_ticket() {
    if (threadIdx.x != 0 || stage_ < end_stage_ || ended_) return;
    const bool own = args_.spread && num_jobs_ == 0;
    *ticket_ = own ? static_cast<int>(blockIdx.x)
                   : static_cast<int>(atomicAdd(&tickets(args_).next_warp, 1u) + (args_.spread ? gridDim.x : 0));
  }

  // Asks for K of the next stage of the item being read, or of the first of the next item: one slab a warp.
  __device__ __forceinline__ void request_keys() {
    if (stage_ == end_stage_ && !ended_) begin_item();
    if (ended_) return;
    stream_.enter_tile(max(stage_ * kStageTiles, slot_of_job(num_jobs_ - 1).tiles.begin));
    request_slab(smem_ + free_ * kStageBytes<kDim>, false);
  }
  // Asks for its V.
  __device__ __forceinline__ void request_values() {
    if (!ended_) {
      request_slab(smem_ + free_ * kStageBytes<kDim> + kStageBytes<kDim> / 2, true);
      free_ = free_ + 1 == kStages<kDim> ? 0 : free_ + 1;
      ++stage_;
    }
    cp_async_commit();  // also when empty: groups are counted
  }

 private:
  __device__ __forceinline__ void request_slab(unsigned char* slabs, bool values) {
    const int token = (stage_ * kStageSlabs + warp_id()) * kSlabTokens;
    if (!holds_keys(slot_of_job(num_jobs_ - 1), token, kSlabTokens)) return;
    stream_.template copy_rows<kSlabTokens>(slabs + warp_id() * kSlabBytes<kDim>, token, values);
  }

  __device__ __forceinline__ void begin_item() {
    const int ticket = *ticket_;
    ended_ = ticket >= num_tickets_;
    if (ended_) return;
    Job& job = slot_of_job(num_jobs_++);
    set_job(args_, args_.plan.warp_items[ticket / args_.num_kv_heads], ticket % args_.num_kv_heads, kWarpRows, 0, &job);
    stream_.start(job);
    stage_ = job.tiles.begin / kStageTiles;
    end_stage_ = div_ceil(job.tiles.end, kStageTiles);
  }

  __device__ __forceinline__ Job& slot_of_job(int item) const {
    unsigned char* const jobs = smem_ + kStages<kDim> * kStageBytes<kDim> + kStageNotesBytes;
    return reinterpret_cast<Job*>(jobs)[item % kLiveJobs<kDim> * kWarps + warp_id()];
  }

  const RunArgs& args_;
  unsigned char* smem_;
  int* ticket_;
  KvStream<T, kDim> stream_;
  int num_tickets_ = 0, num_jobs_ = 0;
  int stage_ = 0, end_stage_ = 0;  // of the item being read
  int next_ = 0, free_ = 0;        // slots: computed on next, filled next
  bool ended_ = false;
};

// Scores of this warp's slab of the stage, and their maxima for the other warps.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void score_slab(const RunArgs& args, const Job& job, int token, const unsigned char* keys,
                                           const uint32_t (&q)[kDim / 16][4], float (&scores)[2][4],
                                           float (&max)[kWarpRows]) {
  if (holds_keys(job, token, kSlabTokens)) multiply_keys<T, kDim, 1>(keys, q, scores);
  if (!sees_all(job, token, kSlabTokens)) hide_unseen<kHalves>(args, job, token, scores);
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const float most = largest_score(scores, i);
    if (lane_id() % 4 == 0) max[lane_row(i)] = most;
  }
}

// Moves the maxima on over one tile and returns what it does to the rows.
template <int kHalves>
__device__ __forceinline__ void raise_maxima(const StageNotes& notes, int tile, float scale_log2,
                                             RowState<16, kHalves>& state, Rescale (&rescale)[kHalves]) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    float most = state.max[i];
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) most = fmaxf(most, notes.max[tile * kTileSlabs + s][lane_row(i)]);
    rescale[i] = make_rescale(state.max[i], most, scale_log2);
    state.max[i] = most;
  }
}

template <typename T, int kHalves>
__device__ __forceinline__ void share_weights(float (&scores)[2][4], const Rescale (&rescale)[kHalves],
                                              float scale_log2, StageNotes& notes) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    notes.sums[warp_id()][lane_row(i)][lane_id() % 4] = weigh_slab(scores, i, scale_log2, rescale[i].shift);
  }
  uint32_t w[4];
  pack_weights<T, kHalves>(scores, w);
  notes.weights[warp_id()][lane_id()] = make_uint4(w[0], w[1], w[2], w[3]);
}

// One tile of the stage into this warp's 16 columns. `values` begins at the tile, at those columns.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void absorb_tile(const Job& job, int token, int tile, const StageNotes& notes,
                                            const unsigned char* values, const Rescale (&rescale)[kHalves],
                                            RowState<16, kHalves>& state) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    float sum = 0;  // slab by slab, in order
#pragma unroll
    for (int s = 0; s < kTileSlabs; ++s) sum += notes.sums[tile * kTileSlabs + s][lane_row(i)][lane_id() % 4];
    state.sum[i] = fmaf(state.sum[i], rescale[i].decay, sum);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      state.acc[j][2 * i] *= rescale[i].decay;
      state.acc[j][2 * i + 1] *= rescale[i].decay;
    }
  }
#pragma unroll
  for (int s = 0; s < kTileSlabs; ++s) {
    if (!holds_keys(job, token + s * kSlabTokens, kSlabTokens)) continue;
    const uint4 w = notes.weights[tile * kTileSlabs + s][lane_id()];
    const uint32_t weights[4] = {w.x, w.y, w.z, w.w};
    multiply_values<T, kDim, 16>(values + s * kSlabBytes<kDim>, weights, state.acc);
  }
}

// A stage: tiles [tile, tile + kStageTiles), of which the job has those of its own range. A chunk ends only with a
// stage or with the item, so its maxima may run ahead of its sums.
template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_stage(const RunArgs& args, const Job& job, int tile, DecodeItems<T, kDim>& items,
                                          const uint32_t (&q)[kDim / 16][4], StageNotes& notes,
                                          RowState<16, kHalves>& state) {
  const unsigned char* const stage = items.next_stage();
  float scores[2][4] = {};
  score_slab<T, kDim, kHalves>(args, job, tile * kTileTokens + warp_id() * kSlabTokens,
                               stage + warp_id() * kSlabBytes<kDim>, q, scores, notes.max[warp_id()]);
  items.request_keys();
  sync_workers();  // all maxima
  const auto has = [&](int t) { return tile + t >= job.tiles.begin && tile + t < job.tiles.end; };
  Rescale rescale[kStageTiles][kHalves];
#pragma unroll
  for (int t = 0; t < kStageTiles; ++t) {
    if (!has(t)) continue;
    raise_maxima(notes, t, args.scale_log2, state, rescale[t]);
    if (warp_id() / kTileSlabs == t) share_weights<T>(scores, rescale[t], args.scale_log2, notes);
  }
  items.request_values();
  items.fetch_ticket();
  sync_workers();  // all weights
  const int column = warp_id() * 16;
  const unsigned char* const values = stage + kStageBytes<kDim> / 2 + column * 2;
#pragma unroll
  for (int t = 0; t < kStageTiles; ++t) {
    if (!has(t) || column >= kDim) continue;
    absorb_tile<T, kDim>(job, (tile + t) * kTileTokens, t, notes, values + t * kTileSlabs * kSlabBytes<kDim>,
                         rescale[t], state);
  }
}

template <typename T, int kDim, int kHalves>
__device__ __forceinline__ void run_decode_item(const RunArgs& args, const Job& job, DecodeItems<T, kDim>& items,
                                                StageNotes& notes) {
  uint32_t q[kDim / 16][4];
  load_queries<T, kDim, kHalves>(args, job, q);
  RowState<16, kHalves> state, running;
  state.clear();
  running.clear();
  const int column = warp_id() * 16;
  if (column < kDim) begin_running<kDim>(args, job, running, column);
  constexpr int kStep = kStageTiles;
  for (int tile = job.tiles.begin / kStep * kStep; tile < job.tiles.end; tile += kStep) {
    run_stage<T, kDim, kHalves>(args, job, tile, items, q, notes, state);
    const int last = min(tile + kStep, job.tiles.end) - 1;
    if (!ends_chunk(job, last)) continue;
    if (column < kDim) {
      end_chunk<kDim>(args, job, last / kChunkTiles, state, running, column);
    } else {
      state.clear();
    }
  }
  if (column < kDim) end_item<T, kDim>(args, job, running, column);
}

template <typename T, int kDim>
__device__ __forceinline__ void run_decode_items(const RunArgs& args, unsigned char* smem, int* ticket) {
  static_assert(kChunkTiles % kStageTiles == 0, "stages fill chunks");
  static_assert(sizeof(StageNotes) == kStageNotesBytes, "room in shared memory");
  if (args.plan.header->num_warp_items == 0) return;
  auto& notes = *reinterpret_cast<StageNotes*>(smem + kStages<kDim> * kStageBytes<kDim>);
  DecodeItems<T, kDim> items(args, smem, ticket);
  for (int item = 0;; ++item) {
    const Job* const job = items.job(item);
    if (job == nullptr) break;
    if (job->num_rows <= kHalfRows) {
      run_decode_item<T, kDim, 1>(args, *job, items, notes);
    } else {
      run_decode_item<T, kDim, 2>(args, *job, items, notes);
    }
    if (job->item.split < 0) continue;
    sync_workers();
    if (threadIdx.x == 0) arrive(args, *job);
  }
}

}  // namespace pe::cuda::attention
