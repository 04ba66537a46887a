// SPDX-License-Identifier: Apache-2.0
// A CUDA block on one CPU thread: the emulator under which the kernels' own source is tested without a GPU.
//
// Each CUDA thread is a fiber with a stack of its own. Fibers run one at a time and give way only in a collective
// (__syncthreads, a warp's shuffle or vote, ldmatrix, mma) or at an mbarrier, blocks run one after another. What a GPU
// would do in any order therefore happens here in a chosen order: forward, reverse or pseudo-random. A result that
// changes with the order is a missing barrier. Further traps: shared memory starts as NaN, cp.async delivers only in
// cp_async_wait, dynamic shared memory ends at an unmapped page, and a collective that some named thread never reaches
// is a Fault that lists who waits where.
//
// Not modelled: timing, weak memory order, spinning on other blocks, clusters, textures. Not thread safe.
#pragma once
#if !defined(__x86_64__)
#error "the SIMT emulator's context switch is written for x86-64"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>

#include "pe/core.h"

namespace pe::simt {

enum class Order { kForward, kReverse, kRandom };

struct Options {
  Order order = Order::kForward;  // of the threads of a block between two barriers, and of the blocks
  uint64_t seed = 1;              // of Order::kRandom
  bool poison_shared = true;      // fill shared memory with 0xff bytes (NaN in every float type, -1) before each block
};
Options& options();

// Thrown by launch() when a kernel did what a GPU forbids. The text names the op, the block and the thread.
struct Fault : Error {
  using Error::Error;
};

struct Grid {
  dim3 grid, block;
  size_t smem_bytes = 0;
  const char* op = "";
  bool overlap = false;  // every block must call wait_for_predecessor
};
void run_grid(const Grid& grid, const std::function<void()>& thread_body);

// ---- called by the threads of a kernel -----------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& text);

struct Site {  // where a thread waits; all threads of one collective must wait in the same place
  const char* what;
  const char* file;
  int line;
};

// Waits for every thread of the block; returns how many of them had a true predicate.
int barrier(const Site& site, bool predicate);

// Waits until all lanes in `mask` of the calling warp are here; the last one calls resolve(mask, args of lanes 0..31).
using Resolve = void (*)(uint32_t mask, void* const* lanes);
void warp_collective(const Site& site, uint32_t mask, void* args, Resolve resolve);
void wait_for_predecessor();  // not waited for: blocks run one after another; that it is called is checked
uint32_t live_lanes();        // of the calling warp: those that have not returned
int current_lane();

// Gives way until ready(arg); other threads of the block make it so.
void wait_until(const Site& site, bool (*ready)(const void*), const void* arg);

void* dynamic_smem();

void cp_async(void* smem, const void* global, int bytes, int valid_bytes);
void cp_async_commit();
void cp_async_wait(int pending_groups);
void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row, bool transposed);
using UnpackPair = void (*)(uint32_t pair, float* lo, float* hi);
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, UnpackPair unpack);

}  // namespace pe::simt

#include "simt/intrinsics.h"
