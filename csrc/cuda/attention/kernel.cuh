// SPDX-License-Identifier: Apache-2.0
// paged attention: any mix of prefill chunks and decodes, one persistent kernel.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D]; D in the inst_*.cu; H % HK == 0; pad sequences have no
// queries grid: SMs · block 256 = 8 warps · smem: up to 205 KiB (rings) · 1 CTA/SM traffic and floors: decode.cuh
// (HBM-bound), prefill.cuh (bound by the tensor cores)
//
// Each CTA takes CTA items (128 rows) until none is left, then each of its warps takes warp items (16 rows), then rows
// to merge. All by ticket, in the plan's order: prefill and decode of a mixed step share the GPU without a second
// launch, and the empty part of a step costs one look at the header. The last CTA to leave resets the tickets, so that
// the next layer finds the plan as it was.
#pragma once
#include "cuda/attention/combine.cuh"
#include "cuda/attention/decode.cuh"
#include "cuda/attention/prefill.cuh"
#include "cuda/common/launch.cuh"

namespace pe::cuda::attention {

template <typename T, int kDim>
__device__ __forceinline__ void run_cta_tickets(const RunArgs& args, int num_tickets, unsigned char* slots,
                                                int* shared) {
  for (;;) {
    __syncthreads();  // everybody is done with the rings and the last ticket
    if (threadIdx.x == 0) *shared = static_cast<int>(atomicAdd(&args.plan.header->next_cta, 1u));
    __syncthreads();
    const int ticket = *shared;
    if (ticket >= num_tickets) return;
    const Item item = args.plan.cta_items[ticket / args.num_kv_heads];
    const int kv_head = ticket % args.num_kv_heads;
    run_cta_item<T, kDim>(args, item, kv_head, slots);
    if (item.split < 0) continue;
    __syncthreads();
    if (threadIdx.x == 0) arrive(args, item, kv_head);
  }
}

// `next` is this warp's first ticket, or -1 to take one; tickets taken begin at `taken_from`.
template <typename T, int kDim>
__device__ __forceinline__ void run_warp_tickets(const RunArgs& args, const Header& header, unsigned char* slots,
                                                 int next, int taken_from) {
  const int num_items = header.num_warp_items * args.num_kv_heads;
  const int num_tickets = num_items + header.num_merge_rows * args.num_kv_heads;
  for (;;) {
    if (next < 0) {
      if (lane_id() == 0) next = taken_from + static_cast<int>(atomicAdd(&args.plan.header->next_warp, 1u));
      next = __shfl_sync(kFullMask, next, 0);
    }
    if (next >= num_tickets) return;
    const int kv_head = next % args.num_kv_heads;
    if (next < num_items) {
      const Item item = args.plan.warp_items[next / args.num_kv_heads];
      run_warp_item<T, kDim>(args, item, kv_head, slots);
      __syncwarp();
      if (item.split >= 0 && lane_id() == 0) arrive(args, item, kv_head);
    } else {
      run_merge<T, kDim>(args, args.plan.merge_rows[(next - num_items) / args.num_kv_heads], kv_head);
    }
    next = -1;
  }
}

__device__ inline void leave(const RunArgs& args, const Header& header, int* shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *shared = atomicAdd(&args.plan.header->num_done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (*shared == 0) return;
  const int num_arrivals = header.num_splits * args.num_kv_heads;
  for (int i = static_cast<int>(threadIdx.x); i < num_arrivals; i += kThreads) args.plan.arrivals[i] = 0;
  if (threadIdx.x == 0) args.plan.header->next_cta = args.plan.header->next_warp = args.plan.header->num_done = 0;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) attention_kernel(const RunArgs args) {
  static_assert(kDim % 16 == 0 && kDim >= 16, "head_dim in steps of the products' depth");
  PE_DYNAMIC_SMEM(unsigned char, smem);
  int* const shared = reinterpret_cast<int*>(smem + smem_bytes<kDim>(args.num_slots) - kControlBytes);
  wait_for_predecessor();
  const Header header = *args.plan.header;
  if (header.num_cta_items > 0) {
    run_cta_tickets<T, kDim>(args, header.num_cta_items * args.num_kv_heads, smem, shared);
  }
  // Without CTA items all warps start now, and their first tickets go round the SMs; the rest is taken as warps come
  // free.
  const bool spread = args.spread && header.num_cta_items == 0;
  const int num_ctas = static_cast<int>(gridDim.x), cta = static_cast<int>(blockIdx.x);
  run_warp_tickets<T, kDim>(args, header, smem + warp_id() * args.num_slots * kSlabBytes<kDim>,
                            spread ? warp_id() * num_ctas + cta : -1, spread ? num_ctas * kWarps : 0);
  leave(args, header, shared);
}

template <int kDim>
void launch_attention(const RunArgs& args, DType dtype, int num_ctas, Stream stream) {
  const auto start = [&](auto kernel) {
    launch(kernel, dim3(static_cast<unsigned>(num_ctas)), dim3(kThreads), smem_bytes<kDim>(args.num_slots), stream,
           "paged_attention", args);
  };
  dtype == DType::kBF16 ? start(attention_kernel<bf16, kDim>) : start(attention_kernel<f16, kDim>);
}

}  // namespace pe::cuda::attention
