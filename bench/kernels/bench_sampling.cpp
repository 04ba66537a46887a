// SPDX-License-Identifier: Apache-2.0
// pe::cuda::sample over a vocabulary of 128256, fp32 logits, for the mixes of parameters that requests bring. Each
// token is compared with pe::cpu::sample; the draw takes a few logarithms in fp32, so two scores within rounding of
// each other may swap: one row in a hundred is allowed, which is a thousand times more than expected and a hundred
// times less than any real mistake.
#include <cstdio>
#if defined(PE_CUDA)
#include "common.h"
#include "pe/sampling.h"

namespace {

using namespace bench;

constexpr int64_t kVocab = 128256;

struct Mix {
  const char* name;
  float temperature, top_p, min_p;
  int32_t top_k;
  float spread;  // of the logits: 1 is nearly flat, at 3 a nucleus of 0.95 holds thousands of tokens, at 10 a few
};
constexpr Mix kMixes[] = {{"greedy", 0, 1, 0, 0, 3},
                          {"no filter", 0.8f, 1, 0, 0, 3},
                          {"top-k 50 top-p 0.95", 0.8f, 0.95f, 0, 50, 3},
                          {"top-k 50 top-p 0.95 min-p 0.05", 0.8f, 0.95f, 0.05f, 50, 3},
                          {"min-p 0.05", 0.8f, 1, 0.05f, 0, 3},
                          {"top-p 0.95", 0.8f, 0.95f, 0, 0, 3},
                          {"top-p 0.95 peaked", 0.8f, 0.95f, 0, 0, 10},
                          {"top-p 0.95 flat", 1, 0.95f, 0, 0, 1},
                          {"top-k 5000 flat", 1, 1, 0, 5000, 1}};

void bench_mix(Report& report, const Gpu& gpu, const Mix& mix, int64_t rows, bool warm) {
  const std::string name = "sample f32 V128256 B" + std::to_string(rows) + " " + mix.name + (warm ? " warm" : " cold");
  if (!report.wants(name)) return;
  const Array logits_host = Array::random(rows * kVocab, pe::DType::kF32, 7, mix.spread);
  const DeviceMemory logits = upload(logits_host);
  std::vector<int32_t> positions(rows);
  std::vector<int64_t> seeds(rows);
  for (int64_t i = 0; i < rows; ++i) positions[i] = static_cast<int32_t>(100 + i), seeds[i] = 12345 + 77 * i;
  const DeviceVector<float> temperature(std::vector<float>(rows, mix.temperature)),
      top_p(std::vector<float>(rows, mix.top_p)), min_p(std::vector<float>(rows, mix.min_p));
  const DeviceVector<int32_t> top_k(std::vector<int32_t>(rows, mix.top_k)), position(positions);
  const DeviceVector<int64_t> seed(seeds);
  DeviceMemory ids(rows * 4), workspace(pe::cuda::sample_workspace_bytes(rows, kVocab));
  ids.poison(), workspace.poison();
  pe::SampleParams p;
  p.num_rows = rows, p.vocab_size = p.logits_stride = kVocab;
  p.token_ids = static_cast<int32_t*>(ids.data()), p.logits = static_cast<const float*>(logits.data());
  p.temperature = temperature.data(), p.top_p = top_p.data(), p.min_p = min_p.data(), p.top_k = top_k.data();
  p.seeds = seed.data(), p.positions = position.data();
  const auto call = [&] { pe::cuda::sample(p, workspace.workspace(), gpu.stream()); };
  call();
  gpu.wait();
  std::vector<int32_t> got(rows), want(rows);
  ids.download(got.data(), ids.bytes());
  pe::SampleParams cpu = p;
  cpu.token_ids = want.data(), cpu.logits = static_cast<const float*>(logits_host.data());
  cpu.temperature = temperature.host(), cpu.top_p = top_p.host(), cpu.min_p = min_p.host(), cpu.top_k = top_k.host();
  cpu.seeds = seed.host(), cpu.positions = position.host();
  pe::cpu::sample(cpu);
  Case c;
  c.name = name;
  for (int64_t i = 0; i < rows; ++i) c.error += got[i] != want[i] ? 1.0 / rows : 0;
  c.tolerance = mix.temperature == 0 ? 0 : 0.01;
  c.bytes = 4.0 * rows * kVocab;
  c.roofed = !warm;
  if (Report::correct(c)) c.times_us = gpu.time_us(call, warm);
  report.add(c);
}

void run(Report& report, const Gpu& gpu) {
  for (const Mix& mix : kMixes) {
    for (const int64_t rows : {1, 64, 256}) {
      if (report.options().quick && rows > 64) continue;
      for (const bool warm : {true, false}) bench_mix(report, gpu, mix, rows, warm);
    }
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, false, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
