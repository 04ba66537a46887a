// SPDX-License-Identifier: Apache-2.0
// The 16 packed query rows of one warp: where they are, which keys they see, how they are loaded and how they leave.
//
// Row r of a sequence (for one kv head) is query token r / group, query head r % group of the group. Positions ascend
// with r, so the first row has the smallest range of visible keys and the last row the largest. Lane l holds rows l / 4
// and l / 4 + 8, as mma.cuh lays accumulators out.
#pragma once
#include "cuda/attention/args.h"
#include "cuda/attention/softmax.cuh"

namespace pe::cuda::attention {

struct KeyRange {
  int begin = 0, end = 0;  // visible keys [begin, end); empty for a row that does not exist
};

struct Sequence {
  int query_begin, num_queries, len, first_position;

  __device__ Sequence(const RunArgs& args, int seq)
      : query_begin(args.query_start[seq]),
        num_queries(args.query_start[seq + 1] - query_begin),
        len(args.seq_lens[seq]),
        first_position(len - num_queries) {}

  __device__ int num_rows(int group) const { return num_queries * group; }
  __device__ KeyRange keys_of(int row, const RunArgs& args) const {
    const int position = first_position + row / args.group;
    const int begin = args.window == 0 ? 0 : position - args.window + 1;
    return {begin > 0 ? begin : 0, position + 1};
  }
};

struct WarpRows {
  int first_row, num_rows;  // may be none
  KeyRange first, last;     // of the first and the last row, equal in all lanes
  KeyRange mine[2];         // of this lane's two rows

  __device__ WarpRows(const Sequence& seq, int row, int end_row, const RunArgs& args)
      : first_row(row), num_rows(max(0, min(kWarpRows, end_row - row))) {
    if (num_rows == 0) return;
    first = seq.keys_of(row, args);
    last = seq.keys_of(row + num_rows - 1, args);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane_id() / 4 + 8 * i;
      if (r < num_rows) mine[i] = seq.keys_of(row + r, args);
    }
  }
  __device__ bool has(int i) const { return lane_id() / 4 + 8 * i < num_rows; }
  // Some row sees some key of [token, token + count).
  __device__ bool sees_any(int token, int count) const {
    return num_rows > 0 && token < last.end && token + count > first.begin;
  }
  __device__ bool all_see_all(int token, int count) const { return token >= last.begin && token + count <= first.end; }
};

template <typename T>
__device__ __forceinline__ int64_t element_offset(const Sequence& seq, int row, int head, const RunArgs& args,
                                                  int64_t token_stride, int64_t head_stride) {
  const int token = row / args.group, member = row % args.group;
  return int64_t{seq.query_begin + token} * token_stride + (int64_t{head} * args.group + member) * head_stride;
}

// Rows that do not exist are zeros: their scores are finite, and nobody reads their results.
template <typename T, int kDim>
__device__ __forceinline__ void load_queries(const RunArgs& args, const Sequence& seq, const WarpRows& rows, int head,
                                             uint32_t (&q)[kDim / 16][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t* from = nullptr;
    if (rows.has(i)) {
      const int row = rows.first_row + lane_id() / 4 + 8 * i;
      from = reinterpret_cast<const uint32_t*>(static_cast<const T*>(args.q) + element_offset<T>(seq, row, head, args,
                                                                                                 args.q_token_stride,
                                                                                                 args.q_head_stride));
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int pair = 8 * k + lane_id() % 4;
      q[k][i] = from != nullptr ? from[pair] : 0;
      q[k][i + 2] = from != nullptr ? from[pair + 4] : 0;
    }
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void store_output(const RunArgs& args, const Sequence& seq, const WarpRows& rows, int head,
                                             const RowState<kDim>& state) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows.has(i)) continue;
    const int row = rows.first_row + lane_id() / 4 + 8 * i;
    auto* to = reinterpret_cast<uint32_t*>(static_cast<T*>(args.out) + element_offset<T>(seq, row, head, args,
                                                                                         args.out_token_stride,
                                                                                         args.out_head_stride));
    const float scale = inverse_sum(state.sum[i]);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      to[4 * j + lane_id() % 4] = pack2<T>(state.acc[j][2 * i] * scale, state.acc[j][2 * i + 1] * scale);
    }
  }
}

// Partial results of the warp's rows, to partial row `partial` + row of the tile.
template <int kDim>
__device__ __forceinline__ void store_partial(const RunArgs& args, const WarpRows& rows, int head, int64_t partial,
                                              const RowState<kDim>& state) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows.has(i)) continue;
    const int64_t at = (partial + lane_id() / 4 + 8 * i) * args.num_kv_heads + head;
    auto* acc = reinterpret_cast<float2*>(args.partial_acc + at * kDim);
    if (lane_id() % 4 == 0) reinterpret_cast<float2*>(args.partial_sum)[at] = make_float2(state.max[i], state.sum[i]);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      acc[4 * j + lane_id() % 4] = make_float2(state.acc[j][2 * i], state.acc[j][2 * i + 1]);
    }
  }
}

}  // namespace pe::cuda::attention
