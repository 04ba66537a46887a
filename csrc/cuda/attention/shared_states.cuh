// SPDX-License-Identifier: Apache-2.0
// Chunks that many sequences share, in the kernel (the planner's part is shared_prefix.cuh): whose rows a CTA gathers,
// and how a sequence's own tile goes on from their states.
#pragma once
#include "cuda/attention/args.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/turns.cuh"

namespace pe::cuda::attention {

// Row of the warp that this lane holds as its row i.
__device__ __forceinline__ int lane_row(int i) { return lane_id() / 4 + 8 * i; }

// Whoever waits here waits for warps that run: the tickets of merges follow those of all pieces, and the items that go
// on from shared chunks are taken only when all items of CTAs have been.
__device__ __forceinline__ void wait_for_pieces(const uint32_t* arrivals, uint32_t num_pieces) {
  for (;;) {
    uint32_t count = 0;
    if (lane_id() == 0) count = *static_cast<const volatile uint32_t*>(arrivals);
    if (__shfl_sync(kFullMask, count, 0) >= num_pieces) break;
    __nanosleep(64);
  }
  __threadfence();
  __syncwarp();
}

// Where a gathered row of q begins.
__device__ __forceinline__ int64_t gathered_offset(const RunArgs& args, int shared_row, int kv_head) {
  const SharedRow row = args.plan.shared_rows[shared_row];
  return row.token * args.q_token_stride + (int64_t{kv_head} * args.group + row.head) * args.q_head_stride;
}

// Columns [column, column + kCols) of this lane's row i after the group's chunks: its states, merged in order.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void load_states(const RunArgs& args, const Group& group, int64_t row, int kv_head, int i,
                                            int column, RowState<kCols, kHalves>& state) {
  for (int s = 0; s < group.num_states; ++s) {
    const int64_t at = (row + int64_t{s} * group.num_rows) * args.num_kv_heads + kv_head;
    const auto* from = reinterpret_cast<const float2*>(args.partial_acc + at * kDim + column) + lane_id() % 4;
    const float2 max_sum = __ldcg(reinterpret_cast<const float2*>(args.partial_sum) + at);
    if (s > 0 && max_sum.y == 0) continue;
    // state 0 is what a row that has seen nothing becomes by it, without the products by 0 and 1
    const MergeFactors f =
        s == 0 ? MergeFactors{max_sum.x, 0, 1} : merge_factors(state.max[i], max_sum.x, args.scale_log2);
    state.max[i] = f.max;
    state.sum[i] = s == 0 ? max_sum.y : merge(state.sum[i], max_sum.y, f);
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) {
      const float2 acc = __ldcg(from + 4 * j);
      state.acc[j][2 * i] = s == 0 ? acc.x : merge(state.acc[j][2 * i], acc.x, f);
      state.acc[j][2 * i + 1] = s == 0 ? acc.y : merge(state.acc[j][2 * i + 1], acc.y, f);
    }
  }
}

// Waits for the group's chunks, then loads what they made of the warp's rows, which are those from shared_row on.
template <int kDim, int kCols, int kHalves>
__device__ __forceinline__ void go_on_from_shared(const RunArgs& args, int shared_row, int num_rows, int kv_head,
                                                  int column, RowState<kCols, kHalves>& state) {
  const Group group = args.plan.groups[args.plan.shared_rows[shared_row].group];
  const int row = shared_row - group.first_row;
  for (int tile = row / kCtaRows; tile <= (row + num_rows - 1) / kCtaRows; ++tile) {
    wait_for_pieces(&arrivals(args)[(group.split + tile) * args.num_kv_heads + kv_head], group.num_pieces);
  }
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    if (lane_row(i) >= num_rows) continue;
    load_states<kDim>(args, group, int64_t{group.state} + row + lane_row(i), kv_head, i, column, state);
  }
}

}  // namespace pe::cuda::attention
