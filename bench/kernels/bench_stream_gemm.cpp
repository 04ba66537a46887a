// SPDX-License-Identifier: Apache-2.0
// The two ways of pe::cuda::linear side by side: cuBLASLt and the weight-streaming kernel at the layers of llama31-8b
// and SmolLM2-135M, and what a whole decode step of llama31-8b (32 layers and the head) spends in them.
//
// Both must give the same bits before either is timed. Times are those of a launch in a replayed CUDA graph of many,
// with weights rotated past the L2, as in a model. "apart": with a one-block kernel between the launches, its own time
// included, which takes from the streaming kernel that the next launch prefetches while the last one ends.
// --filter plans also times every cut of the streaming kernel and prints the best.
// "gated": of the layers gate_up, linear and silu_mul against the one kernel that does both.
#include <cstdio>
#if defined(PE_CUDA)
#include <map>
#include <memory>
#include <numeric>

#include "cuda/gemm/stream_gemm.h"
#include "graph.h"
#include "linear_layers.h"
#include "pe/activation.h"

namespace {

using namespace bench;
using pe::LinearParams;
using pe::cuda::stream::Plan;
using Path = std::function<void(const LinearParams&)>;

constexpr int kPerStep = 32;  // of each of llama's first four
constexpr Layer kLayers[] = {{"llama qkv", 6144, 4096, kB, kB, false},      {"llama o", 4096, 4096, kB, kB, false},
                             {"llama gate_up", 28672, 4096, kB, kB, false}, {"llama down", 4096, 14336, kB, kB, false},
                             {"llama head", 128256, 4096, kB, kF, false},   {"smol qkv", 960, 576, kB, kB, false},
                             {"smol o", 576, 576, kB, kB, false},           {"smol gate_up", 3072, 576, kB, kB, false},
                             {"smol down", 576, 1536, kB, kB, false},       {"smol head", 49152, 576, kB, kF, false},
                             {"qwen qkv", 4096, 1024, kB, kB, false},       {"qwen o", 1024, 2048, kB, kB, false},
                             {"qwen gate_up", 6144, 1024, kB, kB, false},   {"qwen down", 1024, 3072, kB, kB, false},
                             {"qwen head", 151936, 1024, kB, kF, false},    {"qkv bias", 6144, 4096, kB, kB, true}};
constexpr int64_t kRows[] = {1, 8, 16, 32, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256};

int times_in_step(const Layer& layer) {
  if (std::string(layer.name) == "llama head") return 1;
  return std::string(layer.name).rfind("llama", 0) == 0 ? kPerStep : 0;
}

// A product of m rows with everything it needs on the GPU.
class Problem {
 public:
  Problem(const Gpu& gpu, const Layer& layer, const Weights& weights, int64_t m)
      : gpu_(gpu),
        layer_(layer),
        weights_(weights),
        x_(m * layer.k, layer.dtype, 7),
        out_(m * layer.n * pe::size_of(layer.out_dtype)),
        ids_(std::vector<int32_t>{0}),
        p_(params(layer, m)) {
    p_.out = out_.data(), p_.x = x_.data(), p_.weight = weights.copy(0, layer.dtype);
    if (layer.bias) p_.bias = weights.bias.data();
  }

  const LinearParams& params_of_copy(int64_t i) {
    p_.weight = weights_.copy(i, layer_.dtype);
    return p_;
  }
  double bytes() const {
    return static_cast<double>(layer_.n * layer_.k * pe::size_of(layer_.dtype) + x_.bytes() + out_.bytes());
  }
  size_t out_bytes() const { return out_.bytes(); }

  std::vector<unsigned char> bits(const Path& path) {
    out_.poison();
    path(params_of_copy(0));
    gpu_.wait();
    std::vector<unsigned char> bits(out_.bytes());
    out_.download(bits.data(), bits.size());
    return bits;
  }

  std::vector<double> times_us(const Path& path, bool apart, int repeats) {
    const int launches = static_cast<int>(std::min<int64_t>(200, std::max<int64_t>(kLaunches, weights_.num_copies)));
    path(params_of_copy(0));  // a kernel is loaded on its first call, which a capture does not like
    gpu_.wait();
    Graph graph(gpu_, [&] {
      for (int i = 0; i < launches; ++i) {
        if (apart) separate();
        path(params_of_copy(i));
      }
    });
    graph.replay_us();
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) times.push_back(graph.replay_us() / launches);
    return times;
  }

 private:
  static constexpr int kLaunches = 20;

  void separate() {
    pe::EmbeddingParams e;
    e.out = scratch_.data(), e.ids = ids_.data(), e.weight = x_.data();
    e.num_tokens = e.vocab_size = 1, e.dim = e.out_stride = 64, e.dtype = layer_.dtype;
    pe::cuda::embedding(e, gpu_.stream());
  }

  const Gpu& gpu_;
  const Layer& layer_;
  const Weights& weights_;
  const RandomTensor x_;
  DeviceMemory out_;
  const DeviceMemory scratch_{4096};
  const DeviceVector<int32_t> ids_;
  LinearParams p_;
};

double median(const std::vector<double>& times) { return quantiles(times).median; }

// ---- comparison -----------------------------------------------------------------------------------------------------

struct Totals {
  double library = 0, stream = 0, linear = 0, best = 0;  // us of a step
};

std::string text_of(const Plan& plan) {
  return "tile " + std::to_string(plan.tile) + " depth " + std::to_string(plan.depth) + " ring " +
         std::to_string(plan.ring_bytes >> 10) + " KiB";
}

Path stream_path(const Gpu& gpu, const Plan& plan) {
  return [&gpu, plan](const LinearParams& p) { pe::cuda::stream_gemm(p, plan, gpu.stream()); };
}
Path library_path(const Gpu& gpu) {
  return [&gpu](const LinearParams& p) { pe::cuda::cublaslt_gemm(p, gpu.stream()); };
}

double different(const std::vector<unsigned char>& a, const std::vector<unsigned char>& b) {
  return static_cast<double>(std::inner_product(a.begin(), a.end(), b.begin(), int64_t{0}, std::plus<int64_t>(),
                                                std::not_equal_to<unsigned char>()));
}

double bench_path(Report& report, Problem& problem, const Path& path, const std::string& name, double error,
                  const std::string& note, double bytes, double flops) {
  Case c;
  c.name = name, c.bytes = bytes, c.flops = flops, c.error = error, c.note = note;
  if (Report::correct(c)) {
    const int repeats = report.options().quick ? 5 : 15;
    c.times_us = problem.times_us(path, false, repeats);
    c.note += (note.empty() ? "" : ", ") + ("apart " + micros(median(problem.times_us(path, true, repeats))) + " us");
  }
  report.add(c);
  return c.times_us.empty() ? 0 : median(c.times_us);
}

std::string compare_name(const Layer& layer, int64_t m) { return "compare " + title(layer) + " M" + std::to_string(m); }
std::string plans_name(const Layer& layer, int64_t m) { return "plans " + title(layer) + " M" + std::to_string(m); }

void compare(Report& report, const Gpu& gpu, const Layer& layer, const Weights& weights, int64_t m, Totals* totals) {
  const std::string name = compare_name(layer, m);
  Problem problem(gpu, layer, weights, m);
  const LinearParams& p = problem.params_of_copy(0);
  if (!pe::cuda::stream_gemm_can(p)) return;
  const Plan plan = pe::cuda::stream_gemm_plan(p);
  const bool chosen = pe::cuda::stream_gemm_fits(p);
  const Path library = library_path(gpu), stream = stream_path(gpu, plan);
  const double bytes = problem.bytes(), flops = 2.0 * m * layer.n * layer.k;
  const double error = different(problem.bits(stream), problem.bits(library));
  const double library_us =
      bench_path(report, problem, library, name + " cublaslt", 0, chosen ? "" : "chosen", bytes, flops);
  const double stream_us = bench_path(report, problem, stream, name + " stream", error,
                                      text_of(plan) + (chosen ? ", chosen" : ""), bytes, flops);
  const int times = times_in_step(layer);
  totals->library += times * library_us, totals->stream += times * stream_us;
  totals->linear += times * (chosen ? stream_us : library_us), totals->best += times * std::min(stream_us, library_us);
}

// ---- gate_up with silu_mul ------------------------------------------------------------------------------------------

bool is_gated(const Layer& layer) { return std::string(layer.name).find("gate_up") != std::string::npos; }
std::string gated_name(const Layer& layer, int64_t m) { return "gated " + title(layer) + " M" + std::to_string(m); }

// Both leave [m, n / 2] at the beginning of p.out.
Path two_ops_path(const Gpu& gpu, void* products) {
  return [&gpu, products](LinearParams p) {
    const pe::SiluMulParams gate{p.out, products, p.m, p.n / 2, p.n / 2, p.n, p.dtype};
    p.out = products;
    pe::cuda::linear(p, {}, gpu.stream());
    pe::cuda::silu_mul(gate, gpu.stream());
  };
}
Path one_kernel_path(const Gpu& gpu, const Plan& plan) {
  return [&gpu, plan](LinearParams p) {
    p.out_stride = p.n / 2;
    pe::cuda::stream_gemm(p, plan, gpu.stream(), true);
  };
}

void compare_gated(Report& report, const Gpu& gpu, const Layer& layer, const Weights& weights, int64_t m) {
  const std::string name = gated_name(layer, m);
  Problem problem(gpu, layer, weights, m);
  LinearParams p = problem.params_of_copy(0);
  p.out_stride = p.n / 2;
  if (!pe::cuda::stream_gemm_can(p, true)) return;
  const DeviceMemory products(problem.out_bytes());
  const Plan plan = pe::cuda::stream_gemm_plan(p, true);
  const bool chosen = pe::cuda::stream_gemm_fits(p, true);
  const Path two = two_ops_path(gpu, products.data()), one = one_kernel_path(gpu, plan);
  const double bytes = problem.bytes() - static_cast<double>(problem.out_bytes() / 2);  // what must be moved
  const double flops = 2.0 * m * layer.n * layer.k, error = different(problem.bits(one), problem.bits(two));
  bench_path(report, problem, two, name + " two ops", 0, chosen ? "" : "chosen", bytes, flops);
  bench_path(report, problem, one, name + " one kernel", error, text_of(plan) + (chosen ? ", chosen" : ""), bytes,
             flops);
}

// ---- cuts -----------------------------------------------------------------------------------------------------------

bool tries_plans(const Report& report, const Layer& layer, int64_t m) {  // only when asked for
  return !report.options().filter.empty() && report.wants(plans_name(layer, m));
}

// Every cut, the three fastest printed; each proven where the result is small enough to compare often.
void try_plans(Report& report, const Gpu& gpu, const Layer& layer, const Weights& weights, int64_t m) {
  namespace s = pe::cuda::stream;
  Problem problem(gpu, layer, weights, m);
  if (!pe::cuda::stream_gemm_can(problem.params_of_copy(0))) return;
  constexpr size_t kMaxProvenBytes = size_t{16} << 20;
  const bool proves = problem.out_bytes() <= kMaxProvenBytes;
  const auto wanted = problem.bits(library_path(gpu));
  std::multimap<double, Plan> by_time;
  double error = 0;
  for (const int tile : s::kTiles) {
    if (layer.n / tile > 1400) continue;
    for (const int depth : s::kDepths) {
      for (const int ring : {s::kHalfRing, s::kFullRing}) {
        const Plan plan{tile, depth, ring};
        if (s::stages_of({m, layer.n, layer.k}, plan) < 2) continue;
        if (proves) error += different(problem.bits(stream_path(gpu, plan)), wanted);
        by_time.emplace(median(problem.times_us(stream_path(gpu, plan), false, 3)), plan);
      }
    }
  }
  Case c;
  c.name = plans_name(layer, m), c.error = error;
  int place = 0;
  for (const auto& [us, plan] : by_time) {
    if (++place > 3) break;
    c.note += (place > 1 ? "; " : "") + micros(us) + " us " + text_of(plan);
  }
  report.add(c);
}

void run(Report& report, const Gpu& gpu) {
  std::map<int64_t, Totals> totals;
  for (const Layer& layer : kLayers) {
    const auto wanted = [&](int64_t m) {
      return report.wants(compare_name(layer, m)) || tries_plans(report, layer, m) ||
             (is_gated(layer) && report.wants(gated_name(layer, m)));
    };
    if (std::none_of(std::begin(kRows), std::end(kRows), wanted)) continue;
    const Weights weights(layer, 2 * gpu.l2_bytes());
    for (const int64_t m : kRows) {
      if (report.wants(compare_name(layer, m))) compare(report, gpu, layer, weights, m, &totals[m]);
      if (is_gated(layer) && report.wants(gated_name(layer, m))) compare_gated(report, gpu, layer, weights, m);
      if (tries_plans(report, layer, m)) try_plans(report, gpu, layer, weights, m);
    }
  }
  for (const auto& [m, t] : totals) {
    if (t.library > 0)
      std::printf("# llama31-8b step M%-3d ms: cublaslt %.2f, stream %.2f, linear's choice %.2f, best of both %.2f\n",
                  static_cast<int>(m), t.library * 1e-3, t.stream * 1e-3, t.linear * 1e-3, t.best * 1e-3);
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, false, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
