// SPDX-License-Identifier: Apache-2.0
// The cuts of the weight-streaming GEMM, which are host arithmetic: what every plan must fit into, for every number of
// rows that it may be used with.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>

#include "cuda/gemm/stream_plan.h"

namespace {

using namespace pe::cuda::stream;

constexpr int kMostSmemBytes = 227 << 10;  // of a block on sm_90
constexpr int kH100Places = 132, kPciePlaces = 114;
constexpr int64_t kLayers[][2] = {{8, 64},        {576, 576},    {960, 576},   {3072, 576},   {576, 1536},
                                  {49152, 576},   {4096, 1024},  {1024, 2048}, {6144, 1024},  {1024, 3072},
                                  {151936, 1024}, {6144, 4096},  {4096, 4096}, {28672, 4096}, {4096, 14336},
                                  {128256, 4096}, {57344, 8192}, {8192, 28672}};

int num_failures = 0;

void expect(bool ok, const char* what, const Shape& s, const Plan& plan) {
  if (ok) return;
  if (++num_failures <= 20)
    std::printf("FAILED %s: m %d n %d k %d, tile %d depth %d ring %d\n", what, static_cast<int>(s.m),
                static_cast<int>(s.n), static_cast<int>(s.k), plan.tile, plan.depth, plan.ring_bytes);
}

// Where the last warpgroup stops reading x in the last box of the ring, from the beginning of shared memory.
int64_t end_of_reads(const Shape& s, const Plan& plan) {
  const int64_t boxes = int64_t{stages_of(s, plan)} * plan.depth;
  const int64_t last_x = boxes * plan.tile + (boxes - 1) * padded_rows(s.m);
  return kBarrierBytes + kAlignBytes + (last_x + groups_of(s.m) * kGroupRows) * kBoxRowBytes;
}

void test_plan(const Shape& s, const Plan& plan) {
  const int groups = groups_of(s.m);
  expect(std::find(std::begin(kTiles), std::end(kTiles), plan.tile) != std::end(kTiles), "tile", s, plan);
  expect(stages_of(s, plan) >= 2 && stages_of(s, plan) <= kMaxStages, "stages", s, plan);
  expect(smem_bytes(s, plan) <= kMostSmemBytes && smem_bytes(s, plan) <= plan.ring_bytes, "shared memory", s, plan);
  expect(end_of_reads(s, plan) <= smem_bytes(s, plan), "reads beyond the ring", s, plan);
  expect(groups <= kMaxGroups && groups * kGroupRows >= s.m, "rows without a warpgroup", s, plan);
  expect((groups - 1) * kGroupRows < s.m, "a warpgroup without rows", s, plan);
}

// The plan of a class is made for its largest m and used for all of it.
void test_plans_fit_their_class() {
  for (const auto& [n, k] : kLayers) {
    for (const int places : {kH100Places, kPciePlaces}) {
      for (int64_t m = 1; m <= kMaxRows; ++m) {
        const Shape shape{m, n, k};
        test_plan(shape, fastest_plan(class_end(shape), places));
      }
    }
  }
}

}  // namespace

int main() {
  test_plans_fit_their_class();
  std::printf("%d failures\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
