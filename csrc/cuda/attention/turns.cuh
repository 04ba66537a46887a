// SPDX-License-Identifier: Apache-2.0
// What the launches that share a plan count in, by turns (kTurns in args.h).
#pragma once
#include "cuda/attention/args.h"

namespace pe::cuda::attention {

__device__ __forceinline__ Tickets& tickets(const RunArgs& args) { return args.plan.header->tickets[args.turn]; }
__device__ __forceinline__ uint32_t* arrivals(const RunArgs& args) { return args.plan.arrivals[args.turn]; }

// The first ticket is the CTA's own number where all CTAs run at once, which spares it the way to memory and back.
__device__ __forceinline__ int take_cta_ticket(const RunArgs& args, bool first) {
  if (args.spread && first) return static_cast<int>(blockIdx.x);
  return static_cast<int>(atomicAdd(&tickets(args).next_cta, 1u) + (args.spread ? gridDim.x : 0));
}

// Block 0 puts the other turn's counters back. The launch that used them is over: this one has waited, or its
// predecessor has (RunArgs::settled).
__device__ __forceinline__ void rest_other_turn(const RunArgs& args) {
  if (blockIdx.x != 0) return;
  Header& header = *args.plan.header;
  const int other = args.turn ^ 1, num_arrivals = header.num_splits * args.num_kv_heads;
  for (int i = static_cast<int>(threadIdx.x); i < num_arrivals; i += kThreads) args.plan.arrivals[other][i] = 0;
  if (threadIdx.x != 0) return;
  if (header.turn != static_cast<uint32_t>(args.turn)) __trap();  // a caller out of turn would find no work left
  header.turn = static_cast<uint32_t>(other);
  header.tickets[other] = Tickets{};
}

}  // namespace pe::cuda::attention
