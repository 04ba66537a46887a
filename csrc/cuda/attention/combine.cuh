// SPDX-License-Identifier: Apache-2.0
// The merge of a split tile's partial results, one row by one warp: states in ascending order of their chunks, with the
// very formula that a warp applies to chunks that it folds itself.
//
// A fold over n states is a chain of n dependent steps, but only the maxima need it: 32 lanes load 32 maxima at once,
// find the running maximum before and after each by a scan (exact, so the bits are those of the chain), and make all
// factors in parallel.
// traffic: num_states * (D + 2) * 4 bytes per row, from L2
#pragma once
#include "cuda/attention/job.cuh"

namespace pe::cuda::attention {

__device__ __forceinline__ float warp_inclusive_max(float x) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const float below = __shfl_up_sync(kFullMask, x, offset);
    if (lane_id() >= offset) x = fmaxf(x, below);
  }
  return x;
}

template <typename T, int kDim>
class RowMerger {
 public:
  __device__ __forceinline__ RowMerger(const RunArgs& args, const Split& split, int row, int kv_head)
      : args_(args),
        first_((int64_t{split.state} + row) * args.num_kv_heads + kv_head),
        step_(int64_t{split.num_rows} * args.num_kv_heads),
        num_states_(split.num_states) {}

  __device__ __forceinline__ void merge_all() {
    const float2 first = load_max_sum(0);
    max_ = first.x;
    sum_ = first.y;
    load_acc(0, acc_);
    for (int state = 1; state < num_states_; state += kWarpSize)
      merge_batch(state, min(kWarpSize, num_states_ - state));
  }

  __device__ __forceinline__ void store(T* out) const {
    const float scale = inverse_sum(sum_);
#pragma unroll
    for (int i = 0; i < kLaneVectors; ++i) {
      const int vector = i * kWarpSize + lane_id();
      if (vector >= kDim / 4) break;
      const float4& a = acc_[i];
      const uint2 packed = make_uint2(pack2<T>(a.x * scale, a.y * scale), pack2<T>(a.z * scale, a.w * scale));
      reinterpret_cast<uint2*>(out)[vector] = packed;
    }
  }

 private:
  static constexpr int kLaneVectors = (kDim / 4 + kWarpSize - 1) / kWarpSize;  // float4 per lane
  // Accumulators loaded at a time: a warp with eight of 512 bytes on their way reads but 6 GB/s from the L2.
  static constexpr int kFew = 8, kMany = kLaneVectors == 1 ? 32 : 16;

  // Past the L1: written by other SMs during this kernel.
  __device__ __forceinline__ float2 load_max_sum(int state) const {
    return __ldcg(reinterpret_cast<const float2*>(args_.partial_sum) + first_ + state * step_);
  }
  __device__ __forceinline__ void load_acc(int state, float4 (&acc)[kLaneVectors]) const {
    const auto* from = reinterpret_cast<const float4*>(args_.partial_acc + (first_ + state * step_) * kDim);
#pragma unroll
    for (int i = 0; i < kLaneVectors; ++i) {
      const int vector = i * kWarpSize + lane_id();
      acc[i] = vector < kDim / 4 ? __ldcg(from + vector) : make_float4(0, 0, 0, 0);
    }
  }

  // States [state, state + count), count <= 32: lane l prepares the factors of state + l.
  __device__ __forceinline__ void merge_batch(int state, int count) {
    if (count <= kFew) {
      merge_states<kFew>(state, count);
    } else {
      merge_states<kMany>(state, count);
    }
  }

  template <int kInFlight>
  __device__ __forceinline__ void load_accs(int state, int last, float4 (&acc)[kInFlight][kLaneVectors]) const {
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) load_acc(min(state + j, last), acc[j]);
  }

  template <int kInFlight>
  __device__ __forceinline__ void merge_states(int state, int count) {
    const int last = state + count - 1;
    const float2 mine = lane_id() < count ? load_max_sum(state + lane_id()) : make_float2(kNoScore, 0);
    float4 acc[kInFlight][kLaneVectors];
    load_accs<kInFlight>(state, last, acc);  // while the factors are made
    const float after = fmaxf(max_, warp_inclusive_max(mine.x));
    const float shifted = __shfl_up_sync(kFullMask, after, 1);
    const float before = lane_id() == 0 ? max_ : shifted;
    const MergeFactors factors = merge_factors(before, mine.x, args_.scale_log2);
    const unsigned seen = __ballot_sync(kFullMask, mine.y != 0);
    for (int i = 0; i < count; i += kInFlight) {
      if (i > 0) load_accs<kInFlight>(state + i, last, acc);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int lane = (i + j) % kWarpSize;
        const MergeFactors f{0, __shfl_sync(kFullMask, factors.old, lane), __shfl_sync(kFullMask, factors.added, lane)};
        const float chunk_sum = __shfl_sync(kFullMask, mine.y, lane);
        if (i + j < count && (seen >> lane & 1) != 0) merge_one(f, chunk_sum, acc[j]);
      }
    }
    max_ = __shfl_sync(kFullMask, after, kWarpSize - 1);
  }

  __device__ __forceinline__ void merge_one(const MergeFactors& f, float chunk_sum,
                                            const float4 (&chunk)[kLaneVectors]) {
    sum_ = merge(sum_, chunk_sum, f);
#pragma unroll
    for (int i = 0; i < kLaneVectors; ++i) {
      acc_[i].x = merge(acc_[i].x, chunk[i].x, f);
      acc_[i].y = merge(acc_[i].y, chunk[i].y, f);
      acc_[i].z = merge(acc_[i].z, chunk[i].z, f);
      acc_[i].w = merge(acc_[i].w, chunk[i].w, f);
    }
  }

  const RunArgs& args_;
  int64_t first_, step_;
  int num_states_;
  float max_, sum_;
  float4 acc_[kLaneVectors];
};

// A piece of a split tile is done; called by one thread after the others' stores are ordered before it.
__device__ __forceinline__ void arrive(const RunArgs& args, const Job& job) {
  __threadfence();
  atomicAdd(&arrivals(args)[job.item.split * args.num_kv_heads + job.kv_head], 1u);
}

template <typename T, int kDim>
__device__ __forceinline__ void run_merge(const RunArgs& args, const MergeRow& row, int kv_head) {
  const Split split = args.plan.splits[row.split];
  wait_for_pieces(&arrivals(args)[row.split * args.num_kv_heads + kv_head], split.num_pieces);
  RowMerger<T, kDim> merger(args, split, row.row, kv_head);
  merger.merge_all();
  merger.store(static_cast<T*>(args.out) + row_offset(args, args.query_start[split.seq], split.first_row + row.row,
                                                      kv_head, args.out_token_stride, args.out_head_stride));
}

}  // namespace pe::cuda::attention
