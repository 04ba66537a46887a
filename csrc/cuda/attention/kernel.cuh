// SPDX-License-Identifier: Apache-2.0
// paged attention: any mix of prefill chunks and decodes, one persistent kernel.
// q[T,H,D] k,v[NB,*,HK,D] table[S,MB] lens[S] -> out[T,H,D]; D: see inst_*.cu; H % HK == 0; padding has no queries
// grid: SMs · block 256 = 8 warps · smem: 205 KiB (deep rings) or 69 KiB at D = 128 · 1 CTA/SM
// traffic and floors: decode.cuh (HBM-bound), prefill.cuh and prefill_wgmma.cuh (bound by the tensor cores)
//
// Each CTA takes items of 128 rows (of prefill, or gathered from sequences that begin with the same keys, see
// shared_prefix.cuh) until none is left, then decode items (16 rows): one after the other with all
// its warps, or each warp by itself, as the plan has decided. Then its warps take rows to merge. All by ticket, in the
// plan's order: prefill and decode of a mixed step share the GPU without a second launch, and the empty part of a step
// costs one look at the header. One plan serves one stream at a time.
#pragma once
#include "cuda/attention/combine.cuh"
#include "cuda/attention/decode.cuh"
#include "cuda/attention/decode_boxes.cuh"
#include "cuda/attention/decode_cta.cuh"
#include "cuda/attention/prefill_fp8.cuh"
#include "cuda/attention/prefill_wgmma.cuh"
#include "cuda/attention/prefill_wgmma_fp8.cuh"
#include "cuda/common/launch.cuh"

namespace pe::cuda::attention {

// Shared memory of the kernel as one warp sees it.
struct WarpMemory {
  unsigned char* cta_slots;
  unsigned char* warp_slots;
  Job* job;
  int* ticket;  // of the CTA
};
template <typename Format>
__device__ __forceinline__ WarpMemory warp_memory(unsigned char* smem, const RunArgs& args) {
  unsigned char* const control = smem + Format::smem_bytes(args.num_slots, args.by_cta, args.by_boxes) - kControlBytes;
  return {smem, smem + warp_id() * args.num_slots * kSlabBytes<Format::kWords>,
          reinterpret_cast<Job*>(control + warp_id() * kJobBytes),
          reinterpret_cast<int*>(control + kWarps * kJobBytes)};
}
// The same as one warp of a pair sees it: all rings, then what belongs to each.
template <int kWords>
__device__ __forceinline__ PairMemory<kWords> pair_memory(unsigned char* smem) {
  const int pair = warp_id() % kBoxPairs;
  unsigned char* const jobs = smem + kBoxPairs * kBoxRingBytes + pair * kPairControlBytes<kWords>;
  auto* const barriers = reinterpret_cast<uint64_t*>(jobs + kLiveBoxJobs<kWords> * kJobBytes);
  return {smem + pair * kBoxRingBytes, reinterpret_cast<Job*>(jobs), barriers, barriers + kBoxGroups<kWords>};
}

template <typename T, int kDim>
__device__ __forceinline__ void run_cta_tickets(const RunArgs& args, const WarpMemory& memory) {
  for (bool first = true;; first = false) {
    sync_workers();  // everybody is done with the ring and the last ticket
    if (threadIdx.x == 0) *memory.ticket = take_cta_ticket(args, first);
    sync_workers();
    const int ticket = *memory.ticket;
    if (ticket >= args.plan.header->num_cta_items * args.num_kv_heads) return;
    const Item& item = args.plan.cta_items[ticket / args.num_kv_heads];
    set_cta_job(args, item, ticket % args.num_kv_heads, warp_id() * kWarpRows, memory.job);
    CtaItem<T, kDim>::run(args, *memory.job, memory.cta_slots);
    if (memory.job->item.split < 0) continue;
    sync_workers();
    if (threadIdx.x == 0) arrive(args, *memory.job);
  }
}

// Without CTA items all warps start at once: their first tickets go round the SMs, so that few items do not crowd on
// few SMs. All others are taken as warps come free.
__device__ __forceinline__ int take_warp_ticket(const RunArgs& args, bool first) {
  const bool spread = args.spread && args.plan.header->num_cta_items == 0;
  const int num_ctas = static_cast<int>(gridDim.x);
  if (spread && first) return warp_id() * num_ctas + static_cast<int>(blockIdx.x);
  return take_ticket(&tickets(args).next_warp) + (spread ? num_ctas * kWarps : 0);
}

// Where CTAs decode, what is left for single warps is to merge.
template <typename T, int kDim>
__device__ __forceinline__ void run_merge_tickets(const RunArgs& args) {
  const int num_merges = args.plan.header->num_merge_rows * args.num_kv_heads;
  if (num_merges == 0) return;
  for (;;) {
    const int ticket = take_ticket(&tickets(args).next_merge);
    if (ticket >= num_merges) return;
    run_merge<T, kDim>(args, args.plan.merge_rows[ticket / args.num_kv_heads], ticket % args.num_kv_heads);
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void run_warp_tickets(const RunArgs& args, const WarpMemory& memory) {
  for (bool first = true;; first = false) {
    const int ticket = take_warp_ticket(args, first);
    const int num_items = args.plan.header->num_warp_items * args.num_kv_heads;
    const int num_merges = args.plan.header->num_merge_rows * args.num_kv_heads;
    if (ticket >= num_items + num_merges) return;
    const int kv_head = ticket % args.num_kv_heads;
    if (ticket >= num_items) {
      using Element = typename KvFormat<T, kDim>::Element;
      run_merge<Element, kDim>(args, args.plan.merge_rows[(ticket - num_items) / args.num_kv_heads], kv_head);
      continue;
    }
    set_job(args, args.plan.warp_items[ticket / args.num_kv_heads], kv_head, kWarpRows, 0, memory.job);
    if (memory.job->num_rows <= kHalfRows) {
      run_warp_item<T, kDim, 1>(args, *memory.job, memory.warp_slots);
    } else {
      run_warp_item<T, kDim, 2>(args, *memory.job, memory.warp_slots);
    }
    __syncwarp();
    if (memory.job->item.split >= 0 && lane_id() == 0) arrive(args, *memory.job);
  }
}

// Code for Hopper alone leaves out what would never run there. (That for compute_90 may run on a newer GPU whose shared
// memory has no room for the pairs.)
#if defined(PE_WGMMA)
constexpr bool kAlwaysBoxes = true;
#else
constexpr bool kAlwaysBoxes = false;
#endif

__device__ __forceinline__ bool has_work_for_ctas(const Header& header) {
  return header.num_cta_items > 0 || header.decodes_by_cta != 0;
}

// Whether a third warpgroup fetches for the CTA's items: launched where there is a copy engine.
#if defined(PE_SIMT)
template <typename Format>
constexpr bool kFetches = false;
#else
template <typename Format>
constexpr bool kFetches = Format::kFetchesPrefill;
#endif

#if defined(PE_WGMMA)
template <typename T, int kDim>
__device__ __forceinline__ void run_fetching_warps(const RunArgs& args, const KvMaps& maps, unsigned char* smem) {
  give_up_registers<kFetchRegisters>();
  if (!args.settled) wait_for_predecessor();
  if (args.plan.header->num_cta_items == 0) return;
  const PrefillMemory<kDim> memory(smem);
  if (threadIdx.x == kThreads) {
    prefetch_map(&maps.k_columns);
    prefetch_map(&maps.v_columns);
    memory.init_barriers();
  }
  wait_for_predecessor();
  sync_block();
  PrefillFetcher<kDim>(args, maps, memory).run();
}
#endif

// The CTA's items, for its computing warps.
template <typename T, int kDim>
__device__ __forceinline__ void run_cta_items(const RunArgs& args, unsigned char* smem, const WarpMemory& memory) {
#if defined(PE_WGMMA)
  if constexpr (kFetches<KvFormat<T, kDim>>) {
    const PrefillMemory<kDim> ring(smem);
    sync_block();  // its barriers are there
    run_fetched_items<T, kDim>(args, ring, memory.job);
    bulk_fence_before_reuse();  // what lay in shared memory was written by these warps too
    sync_workers();
    if (threadIdx.x == 0) ring.invalidate_barriers();
    sync_workers();
    return;
  }
#endif
  run_cta_tickets<T, kDim>(args, memory);
  if constexpr (KvFormat<T, kDim>::kByBoxes) bulk_fence_before_reuse();  // pairs meet before they ask for boxes
}

// Code for sm_90a alone takes three warpgroups where two compute.
#if defined(PE_WGMMA)
template <typename Format>
constexpr int kMostThreads = kThreads + (kFetches<Format> ? kFetchThreads : 0);
#else
template <typename Format>
constexpr int kMostThreads = kThreads;
#endif

// Pairs wait for the predecessor when they have read their way to the first key, all others before they begin.
// T: f16 or bf16, or Fp8 of them for a cache in e4m3.
template <typename T, int kDim>
__global__ void __launch_bounds__(kMostThreads<KvFormat<T, kDim>>, 1)
    attention_kernel(const __grid_constant__ KvMaps maps, const __grid_constant__ RunArgs args) {
  static_assert(kDim % 16 == 0 && kDim >= 16, "head_dim in steps of the products' depth");
  PE_DYNAMIC_SMEM(unsigned char, smem);
  using Format = KvFormat<T, kDim>;
  const WarpMemory memory = warp_memory<Format>(smem, args);
  release_successor();  // its blocks then come to the SMs that find no work
  if constexpr (kFetches<Format>) {
#if defined(PE_WGMMA)
    if (warp_id() >= kWarps) return run_fetching_warps<T, kDim>(args, maps, smem);
    take_registers<kWorkRegisters>();
#endif
  }
  const bool pairs_alone = Format::kByBoxes && args.by_boxes && args.settled && !has_work_for_ctas(*args.plan.header);
  if (!pairs_alone) wait_for_predecessor();
  if (args.plan.header->num_cta_items > 0) run_cta_items<T, kDim>(args, smem, memory);
  if (Format::kByCta && args.plan.header->decodes_by_cta != 0) {
    if constexpr (Format::kByCta) run_decode_items<T, kDim>(args, smem, memory.ticket);
    run_merge_tickets<typename Format::Element, kDim>(args);
  } else if (Format::kByBoxes && args.by_boxes) {
    if constexpr (Format::kByBoxes) run_pairs<T, kDim>(args, maps, pair_memory<Format::kWords>(smem));
  } else if (!(Format::kByBoxes && kAlwaysBoxes)) {
    run_warp_tickets<T, kDim>(args, memory);
  }
  wait_for_predecessor();  // also who had nothing to do
  rest_other_turn(args);
}

// Whether the code that this GPU runs is that with a third warpgroup.
template <typename T, int kDim>
bool takes_fetchers() {
  if constexpr (kFetches<KvFormat<T, kDim>>) {
    static const bool takes = [] {
      cudaFuncAttributes attributes{};
      check_cuda("paged_attention",
                 cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(attention_kernel<T, kDim>)));
      return attributes.maxThreadsPerBlock >= kThreads + kFetchThreads;
    }();
    return takes;
  }
  return false;
}

template <typename T, int kDim>
void start_attention(const RunArgs& args, const KvMaps& maps, int num_ctas, Stream stream) {
  using Format = KvFormat<T, kDim>;
  const int smem = Format::smem_bytes(args.num_slots, args.by_cta, args.by_boxes);
  const int threads = kThreads + (takes_fetchers<T, kDim>() ? kFetchThreads : 0);
  launch_overlapping(attention_kernel<T, kDim>, dim3(static_cast<unsigned>(num_ctas)),
                     dim3(static_cast<unsigned>(threads)), static_cast<size_t>(smem), stream, "paged_attention", maps,
                     args);
}
template <int kDim>
void launch_attention(const RunArgs& args, const KvMaps& maps, DType dtype, int num_ctas, Stream stream) {
  const auto start = dtype == DType::kBF16 ? start_attention<bf16, kDim> : start_attention<f16, kDim>;
  start(args, maps, num_ctas, stream);
}
template <int kDim>
void launch_attention_fp8(const RunArgs& args, const KvMaps& maps, DType dtype, int num_ctas, Stream stream) {
  const auto start = dtype == DType::kBF16 ? start_attention<Fp8<bf16>, kDim> : start_attention<Fp8<f16>, kDim>;
  start(args, maps, num_ctas, stream);
}

}  // namespace pe::cuda::attention
