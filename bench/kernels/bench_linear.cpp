// SPDX-License-Identifier: Apache-2.0
// pe::cuda::linear at the layers of llama31-8b and SmolLM2-135M, weights rotated past the L2 as in a model, and the
// experiment that batch invariance rests on: the same row among many batch sizes and places must give one bit pattern.
//
// The proof is a double-precision product of sampled elements. More than one result in the experiment makes the program
// fail: then linear.cpp's size classes do not hold on this GPU.
#include <cstdio>
#if defined(PE_CUDA)
#include <memory>
#include <set>

#include "cuda/common/tuning.h"
#include "linear_layers.h"

namespace {

using namespace bench;

constexpr Layer kLayers[] = {{"llama qkv", 6144, 4096, kB, kB, false},      {"llama o", 4096, 4096, kB, kB, false},
                             {"llama gate_up", 28672, 4096, kB, kB, false}, {"llama down", 4096, 14336, kB, kB, false},
                             {"llama head", 128256, 4096, kB, kF, false},   {"smol qkv", 960, 576, kB, kB, false},
                             {"smol o", 576, 576, kB, kB, false},           {"smol gate_up", 3072, 576, kB, kB, false},
                             {"smol down", 576, 1536, kB, kB, false},       {"smol head", 49152, 576, kB, kF, false},
                             {"qkv bias", 6144, 4096, kB, kB, true},        {"qkv f16", 6144, 4096, kH, kH, false},
                             {"qkv f32", 6144, 4096, kF, kF, false}};

double error_of(const Layer& layer, const Array& out, const RandomTensor& x, const Weights& weights, int64_t m) {
  for (int64_t i = 0; i < out.size(); ++i)
    if (std::isnan(out.at(i))) return NAN;
  ErrorNorm norm;
  Random random(11);
  for (int sample = 0; sample < 2000; ++sample) {
    const int64_t row = random.below(m), col = random.below(layer.n);
    double sum = layer.bias ? weights.bias.at(col) : 0;
    for (int64_t i = 0; i < layer.k; ++i)
      sum += static_cast<double>(x.at(row * layer.k + i)) * weights.all.at(col * layer.k + i);
    norm.add(out.at(row * layer.n + col), sum);
  }
  return norm.value();
}

void bench_layer(Report& report, const Gpu& gpu, const Layer& layer) {
  std::unique_ptr<Weights> weights;
  for (const int64_t m : {1, 16, 64, 128, 256, 288, 352, 416, 512, 544, 768, 1024, 2048}) {
    const std::string name = "linear " + title(layer) + " M" + std::to_string(m);
    if (!report.wants(name) || (report.options().quick && m > 64)) continue;
    if (!weights) weights.reset(new Weights(layer, 2 * gpu.l2_bytes()));
    const RandomTensor x(m * layer.k, layer.dtype, 7);
    DeviceMemory out(m * layer.n * pe::size_of(layer.out_dtype));
    out.poison();
    pe::LinearParams p = params(layer, m);
    p.out = out.data(), p.x = x.data(), p.weight = weights->copy(0, layer.dtype);
    if (layer.bias) p.bias = weights->bias.data();
    pe::cuda::linear(p, {}, gpu.stream());
    gpu.wait();
    Case c;
    c.name = name;
    c.error = error_of(layer, download(out, layer.out_dtype), x, *weights, m);
    c.tolerance = tolerance(layer.out_dtype);
    c.flops = 2.0 * m * layer.n * layer.k;
    c.bytes = static_cast<double>(layer.n * layer.k * pe::size_of(layer.dtype) + x.bytes() + out.bytes());
    int64_t turn = 0;
    if (Report::correct(c))
      c.times_us = gpu.time_us([&] {
        p.weight = weights->copy(++turn, layer.dtype);
        pe::cuda::linear(p, {}, gpu.stream());
      });
    report.add(c);
  }
}

// The bits of one row of `n` outputs, computed as row `place` of a batch of m.
std::vector<unsigned char> bits_of_row(const Gpu& gpu, const Layer& layer, const Weights& weights, const Array& row,
                                       int64_t m, int64_t place) {
  const RandomTensor x(m * layer.k, layer.dtype, 100 + static_cast<uint64_t>(m));
  const size_t row_bytes = layer.k * pe::size_of(layer.dtype), out_bytes = layer.n * pe::size_of(layer.out_dtype);
  BENCH_CHECK(cudaMemcpy(static_cast<unsigned char*>(x.data()) + place * row_bytes, row.data(), row_bytes,
                         cudaMemcpyHostToDevice));
  DeviceMemory out(m * out_bytes);
  out.poison();
  pe::LinearParams p = params(layer, m);
  p.out = out.data(), p.x = x.data(), p.weight = weights.copy(0, layer.dtype);
  if (layer.bias) p.bias = weights.bias.data();
  pe::cuda::linear(p, {}, gpu.stream());
  gpu.wait();
  std::vector<unsigned char> bits(out_bytes);
  out.download(bits.data(), out_bytes, place * out_bytes);
  return bits;
}

void count_results(Report& report, const Gpu& gpu, const Layer& layer) {
  const std::string name = "invariance " + title(layer);
  if (!report.wants(name)) return;
  std::vector<int64_t> sizes = {1,   2,   3,   4,   5,   7,   8,    9,    15,   16,   17,   31,   32,  33,
                                48,  63,  64,  65,  96,  127, 128,  129,  192,  255,  256,  257,  321, 400,
                                449, 511, 512, 513, 700, 850, 1000, 1024, 1025, 1300, 2048, 2049, 3073};
  if (report.options().quick) sizes = {1, 2, 16, 17, 64, 65, 128, 129, 256, 257};
  const Weights weights(layer, 1);
  const Array row = Array::random(layer.k, layer.dtype, 13);
  std::set<std::vector<unsigned char>> results;
  int num_places = 0;
  for (const int64_t m : sizes) {
    for (const int64_t place : std::set<int64_t>{0, m / 2, m - 1}) {
      results.insert(bits_of_row(gpu, layer, weights, row, m, place));
      ++num_places;
    }
  }
  Case c;  // a proof without times
  c.name = name;
  c.error = static_cast<double>(results.size()) - 1;
  c.note = std::to_string(results.size()) + " distinct result(s) of one row in " + std::to_string(num_places) +
           " places of " + std::to_string(sizes.size()) + " batch sizes";
  report.add(c);
}

// Whether the first of cuBLASLt's suggestions is the fastest that would do, and whether all of them give the same bits.
// Only when asked for.
void compare_suggestions(Report& report, const Gpu& gpu, const Layer& layer) {
  constexpr int kMostSuggestions = 10;
  std::unique_ptr<Weights> weights;
  for (const int64_t m : {256, 288, 320, 384, 512, 640, 768, 1024, 2048, 8192}) {
    const std::string name = "suggestions " + title(layer) + " M" + std::to_string(m);
    if (report.options().filter.empty() || !report.wants(name)) continue;
    if (!weights) weights.reset(new Weights(layer, 2 * gpu.l2_bytes()));
    const RandomTensor x(m * layer.k, layer.dtype, 7);
    const size_t out_bytes = m * layer.n * pe::size_of(layer.out_dtype);
    DeviceMemory out(out_bytes);
    pe::LinearParams p = params(layer, m);
    p.out = out.data(), p.x = x.data();
    if (layer.bias) p.bias = weights->bias.data();
    std::vector<unsigned char> wanted(out_bytes), bits(out_bytes);
    Case c;
    c.name = name;
    for (int i = 0; i < kMostSuggestions; ++i) {
      pe::cuda::tuning.suggestion = i;
      p.weight = weights->copy(0, layer.dtype);
      out.poison();
      pe::cuda::linear(p, {}, gpu.stream());
      gpu.wait();
      out.download(i == 0 ? wanted.data() : bits.data(), out_bytes, 0);
      if (i > 0 && bits != wanted) c.error += 1;
      int64_t turn = 0;
      const auto times = gpu.time_us([&] {
        p.weight = weights->copy(++turn, layer.dtype);
        pe::cuda::linear(p, {}, gpu.stream());
      });
      c.note += (i > 0 ? " " : "us: ") + micros(quantiles(times).median);
    }
    pe::cuda::tuning.suggestion = 0;
    report.add(c);
  }
}

void run(Report& report, const Gpu& gpu) {
  for (const Layer& layer : kLayers) bench_layer(report, gpu, layer);
  for (const Layer& layer : kLayers) compare_suggestions(report, gpu, layer);
  for (const Layer& layer : kLayers) count_results(report, gpu, layer);
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, true, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
