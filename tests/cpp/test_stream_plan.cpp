// SPDX-License-Identifier: Apache-2.0
// The weight-streaming GEMM's cuts, which are host arithmetic: what every plan must fit into, for every number of rows
// that it may be used with. And its rule of where it wins, against the measurements that it was made from.
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
        for (const bool pairs : {false, true}) {
          const Shape shape{m, n, k, pairs};
          const Plan plan = fastest_plan(class_end(shape), places);
          test_plan(shape, plan);
          expect(!pairs || pairs_up(plan.tile), "halves that no thread has both of", shape, plan);
        }
      }
    }
  }
}

// us on an H100, medians of graph replays, of cuBLASLt and of streaming (four warpgroups beyond 128 rows). Layers of
// less than 10 us apart from each other, where there is such a figure: nearer to what a chain of kernels feels.
struct Measured {
  int64_t n, k;
  bool f32_out;
  int64_t m;
  double library_us, stream_us;
};
constexpr Measured kMeasured[] = {
    {6144, 4096, false, 128, 20.9, 19.9}, {6144, 4096, false, 144, 33.3, 22.6},  {6144, 4096, false, 192, 31.3, 23.7},
    {6144, 4096, false, 224, 26.7, 24.7}, {6144, 4096, false, 240, 24.0, 24.9},  {6144, 4096, false, 256, 23.9, 27.2},
    {4096, 4096, false, 128, 14.7, 14.5}, {4096, 4096, false, 144, 26.8, 18.0},  {4096, 4096, false, 192, 22.2, 18.7},
    {4096, 4096, false, 224, 20.9, 19.6}, {4096, 4096, false, 240, 18.2, 19.8},  {4096, 4096, false, 256, 18.9, 20.5},
    {28672, 4096, false, 144, 104, 88.8}, {28672, 4096, false, 224, 103, 93.8},  {28672, 4096, false, 256, 102, 101},
    {4096, 14336, false, 64, 43.2, 40.7}, {4096, 14336, false, 128, 44.3, 47.9}, {4096, 14336, false, 144, 74.1, 57.7},
    {4096, 14336, false, 224, 66.5, 64},  {4096, 14336, false, 240, 60.2, 65.6}, {4096, 14336, false, 256, 57.5, 68.4},
    {128256, 4096, true, 128, 407, 407},  {128256, 4096, true, 144, 436, 442},   {128256, 4096, true, 256, 466, 511},
    {960, 576, false, 144, 4.82, 3.95},   {960, 576, false, 256, 4.82, 4.63},    {576, 576, false, 144, 4.65, 3.95},
    {576, 576, false, 256, 4.69, 4.82},   {3072, 576, false, 144, 5.83, 5.05},   {3072, 576, false, 192, 5.80, 5.24},
    {3072, 576, false, 240, 5.61, 5.57},  {3072, 576, false, 256, 5.54, 5.81},   {576, 1536, false, 144, 6.38, 6.64},
    {576, 1536, false, 192, 6.20, 6.86},  {49152, 576, true, 128, 32.2, 29.4},   {49152, 576, true, 160, 35.8, 37.9},
    {49152, 576, true, 192, 36.6, 42.5},  {4096, 1024, false, 144, 8.40, 7.47},  {4096, 1024, false, 224, 8.51, 7.93},
    {4096, 1024, false, 240, 8.11, 8.02}, {1024, 2048, false, 144, 8.00, 8.30},  {6144, 1024, false, 128, 7.95, 8.06},
    {6144, 1024, false, 192, 9.37, 8.85}, {6144, 1024, false, 224, 10.0, 9.71},  {6144, 1024, false, 240, 9.44, 9.90},
    {1024, 3072, false, 128, 6.99, 6.80}, {1024, 3072, false, 144, 8.55, 10.5},  {151936, 1024, true, 128, 146, 154},
    {151936, 1024, true, 144, 147, 166}};
constexpr double kForgiven = 1.06;  // of the faster one's time: the price of a rule that fits in three lines

void test_the_rule_takes_the_faster_one() {
  for (const Measured& of : kMeasured) {
    const Shape shape{of.m, of.n, of.k, false};
    const double chosen_us = worthwhile(shape, of.f32_out) ? of.stream_us : of.library_us;
    expect(chosen_us <= kForgiven * std::min(of.library_us, of.stream_us), "the slower one is chosen", shape, {});
  }
  for (const bool f32_out : {false, true}) {
    for (const int64_t m : {1, 127}) expect(worthwhile({m, 8, 1 << 20, false}, f32_out), "few rows stream", {}, {});
    expect(!worthwhile({257, 28672, 4096, true}, f32_out), "more pairs than the kernel has rows", {}, {});
    expect(!worthwhile({257, 28672, 4096, false}, f32_out), "more rows than the kernel has", {}, {});
  }
}

}  // namespace

int main() {
  test_the_rule_takes_the_faster_one();
  test_plans_fit_their_class();
  std::printf("%d failures\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
