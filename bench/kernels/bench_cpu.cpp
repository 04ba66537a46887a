// SPDX-License-Identifier: Apache-2.0
// The CPU kernels at SmolLM2-135M's shapes: dense layers, attention, norm, activation, KV write and sampling, each
// proven against a plain double-precision loop and then timed through the thread pool that the engine uses.
//
// The roof is the read bandwidth that the same pool reaches on a buffer far larger than the caches, measured in the
// same run (shared machines drift, the fraction does not). Weights rotate over enough copies that no cache holds them,
// as they do in a model of 30 layers; the other ops work on what the op before has just written, so they run from the
// cache and print no fraction.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "inputs.h"
#include "pe/activation.h"
#include "pe/kv_cache.h"
#include "pe/linear.h"
#include "pe/norm.h"
#include "pe/paged_attention.h"
#include "pe/parallel.h"
#include "pe/sampling.h"
#include "report.h"

namespace {

using namespace bench;
using pe::DType;

constexpr int kHidden = 576, kHeads = 9, kKvHeads = 3, kHeadDim = 64, kVocab = 49152, kLayers = 30, kBlockSize = 16;
constexpr double kCacheBytes = 256e6;  // more than any last-level cache we expect to share

std::vector<double> time_us(const Options& options, const std::function<void(int)>& call) {
  using Clock = std::chrono::steady_clock;
  const double budget_s = options.quick ? 0.1 : 0.6;
  const int min_repeats = 5;
  call(0);
  call(1);
  std::vector<double> times;
  const auto start = Clock::now();
  for (int i = 2; static_cast<int>(times.size()) < min_repeats ||
                  std::chrono::duration<double>(Clock::now() - start).count() < budget_s;
       ++i) {
    const auto before = Clock::now();
    call(i);
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - before).count());
  }
  return times;
}

// Eight independent 32-byte sums: enough loads in flight for a core to reach what memory gives (AVX2 is the backend's
// floor too).
using Words = uint64_t __attribute__((vector_size(32)));
__attribute__((target("avx2"), noinline)) uint64_t sum_words(const Words* data, int64_t count) {
  Words sum[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
  Words total = {};
  for (const Words& s : sum) total += s;
  return total[0] + total[1] + total[2] + total[3];
}

double read_bandwidth(const Options& options) {
  const int64_t count = int64_t{512} << 20 >> 5;
  std::unique_ptr<Words[]> data(new Words[count]);
  Random random(1);
  for (int64_t i = 0; i < count; ++i) data[i] = Words{random.bits(), 1, 2, 3};
  std::atomic<uint64_t> keep{0};  // the sums are used, so the loads stay
  const auto times = time_us(options, [&](int) {
    pe::cpu::parallel_for(count, 8, [&](int64_t begin, int64_t end) { keep += sum_words(&data[begin], end - begin); });
  });
  if (keep == 42) std::printf("#\n");
  return count * 32.0 / (quantiles(times).p5 * 1e-6);  // a roof is the best seen, not the typical
}

// ---- dense layers ---------------------------------------------------------------------------------------------------

struct Layer {
  const char* name;
  int64_t n, k;
  DType out_dtype;
};
constexpr Layer kDense[] = {{"qkv", 960, 576, DType::kBF16},
                            {"o", 576, 576, DType::kBF16},
                            {"gate_up", 3072, 576, DType::kBF16},
                            {"down", 576, 1536, DType::kBF16},
                            {"head", kVocab, 576, DType::kF32}};

struct PackedWeight {
  Array plain;
  std::vector<std::unique_ptr<unsigned char, decltype(&std::free)>> copies;  // packed, 64-byte aligned
  size_t bytes;

  PackedWeight(int64_t n, int64_t k, DType dtype, double rotate_bytes)
      : plain(Array::random(n * k, dtype, 7 + n, 1 / std::sqrt(static_cast<float>(k)))),
        bytes(pe::cpu::packed_bytes(n, k, dtype)) {
    const int count = std::max(1, static_cast<int>(std::ceil(rotate_bytes / bytes)));
    for (int i = 0; i < count; ++i) {
      copies.emplace_back(static_cast<unsigned char*>(std::aligned_alloc(64, pe::round_up<size_t>(bytes, 64))),
                          &std::free);
      if (i > 0) {
        std::memcpy(copies[i].get(), copies[0].get(), bytes);
        continue;
      }
      pe::cpu::PackWeightParams p;
      p.out = copies[0].get();
      p.weight = plain.data();
      p.n = n, p.k = k, p.weight_stride = k, p.dtype = dtype;
      pe::cpu::pack_weight(p);
    }
  }
  const void* copy(int i) const { return copies[i % copies.size()].get(); }
};

double dense_error(const Array& out, const Array& x, const Array& weight, const Array& bias, pe::LinearParams p) {
  ErrorNorm norm;
  for (int64_t i = 0; i < out.size(); ++i)
    if (std::isnan(out.at(i))) return NAN;
  Random random(3);
  for (int sample = 0; sample < 3000; ++sample) {
    const int64_t row = random.below(p.m), col = random.below(p.n);
    double sum = bias.at(col);
    for (int64_t i = 0; i < p.k; ++i) sum += static_cast<double>(x.at(row * p.k + i)) * weight.at(col * p.k + i);
    norm.add(out.at(row * p.n + col), sum);
  }
  return norm.value();
}

pe::LinearParams dense_params(const Layer& layer, int64_t m, DType dtype) {
  pe::LinearParams p;
  p.m = m, p.n = layer.n, p.k = layer.k, p.x_stride = layer.k, p.out_stride = layer.n;
  p.dtype = dtype;
  p.out_dtype = layer.out_dtype == DType::kF32 ? DType::kF32 : dtype;
  return p;
}

void bench_dense(Report& report, const Layer& layer, DType dtype) {
  const std::vector<int64_t> rows =
      report.options().quick ? std::vector<int64_t>{1, 16} : std::vector<int64_t>{1, 16, 512};
  std::unique_ptr<PackedWeight> weight;
  for (const int64_t m : rows) {
    const std::string name = std::string("linear ") + pe::name_of(dtype) + " " + layer.name + " " +
                             std::to_string(layer.n) + "x" + std::to_string(layer.k) + " M" + std::to_string(m);
    if (!report.wants(name)) continue;
    if (!weight) weight.reset(new PackedWeight(layer.n, layer.k, dtype, kCacheBytes));
    pe::LinearParams p = dense_params(layer, m, dtype);
    const Array x = Array::random(m * p.k, dtype, 11), bias = Array::random(p.n, dtype, 13);
    Array out = Array::poisoned(m * p.n, p.out_dtype);
    p.x = x.data(), p.out = out.data(), p.bias = bias.data(), p.weight = weight->copy(0);
    pe::cpu::linear(p);
    Case c;
    c.name = name;
    c.error = dense_error(out, x, weight->plain, bias, p);
    c.tolerance = tolerance(p.out_dtype);
    c.bytes = static_cast<double>(p.n * p.k * pe::size_of(dtype) + x.bytes() + out.bytes());
    c.flops = 2.0 * m * p.n * p.k;
    p.bias = nullptr;  // SmolLM2's layers have none
    if (Report::correct(c))
      c.times_us = time_us(report.options(), [&](int i) {
        p.weight = weight->copy(i);
        pe::cpu::linear(p);
      });
    report.add(c);
  }
}

// All dense layers of one decode step, recorded once and replayed: what the token rate of the engine is made of.
void bench_dense_step(Report& report, int64_t m) {
  const std::string name = "dense_step bf16 smol-135m M" + std::to_string(m);
  if (!report.wants(name)) return;
  Case c;
  c.name = name;
  pe::cpu::Program program;
  std::vector<std::unique_ptr<PackedWeight>> weights;
  std::vector<Array> arrays;
  arrays.reserve(16);
  pe::cpu::begin_recording(&program);
  const auto record = [&](const Layer& layer, int copies) {
    pe::LinearParams p = dense_params(layer, m, DType::kBF16);
    const double bytes = static_cast<double>(p.n * p.k * 2);
    weights.emplace_back(new PackedWeight(p.n, p.k, p.dtype, bytes * copies));
    arrays.push_back(Array::random(m * p.k, p.dtype, 17));
    p.x = arrays.back().data();
    arrays.push_back(Array::poisoned(m * p.n, p.out_dtype));
    p.out = arrays.back().data();
    for (int i = 0; i < copies; ++i) {
      p.weight = weights.back()->copy(i);
      pe::cpu::linear(p);
      c.bytes += bytes, c.flops += m * bytes;
    }
  };
  for (const Layer& layer : kDense) record(layer, layer.n == kVocab ? 1 : kLayers);
  pe::cpu::end_recording();
  arrays.back().poison();  // only a replay that really ran can pass
  program.replay();
  const Array& head = arrays.back();
  const Array& x = arrays[arrays.size() - 2];
  ErrorNorm norm;
  for (int64_t col = 0; col < kVocab; col += 97) {
    double sum = 0;
    for (int64_t i = 0; i < kHidden; ++i)
      sum += static_cast<double>(x.at(i)) * weights.back()->plain.at(col * kHidden + i);
    norm.add(head.at(col), sum);
  }
  c.error = norm.value();
  c.tolerance = tolerance(DType::kF32);
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { program.replay(); });
  if (!c.times_us.empty()) c.note = rate(m / (quantiles(c.times_us).median * 1e-6), "tok/s");
  report.add(c);
}

// ---- attention ------------------------------------------------------------------------------------------------------

struct AttentionShape {
  const char* name;
  int num_seqs, num_queries, seq_len;
};

// The paged cache of one call, blocks in shuffled order, everything outside the sequences poisoned.
struct Cache {
  int blocks_per_seq;
  Array k, v;
  std::vector<int32_t> table;

  Cache(int num_seqs, int seq_len, DType dtype)
      : blocks_per_seq(pe::div_ceil(seq_len, kBlockSize)),
        k(Array::poisoned(size(num_seqs, seq_len), dtype)),
        v(Array::poisoned(size(num_seqs, seq_len), dtype)),
        table(num_seqs * blocks_per_seq) {
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    Random random(23);
    for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[random.below(i)]);
    for (int s = 0; s < num_seqs; ++s)
      for (int t = 0; t < seq_len; ++t)
        for (int h = 0; h < kKvHeads; ++h)
          for (int d = 0; d < kHeadDim; ++d) {
            k.set(index(s, t, h) + d, random.normal());
            v.set(index(s, t, h) + d, random.normal());
          }
  }
  static int64_t size(int num_seqs, int seq_len) {
    return static_cast<int64_t>(num_seqs) * pe::div_ceil(seq_len, kBlockSize) * kBlockSize * kKvHeads * kHeadDim;
  }
  int64_t index(int s, int t, int h) const {
    const int64_t block = table[s * blocks_per_seq + t / kBlockSize];
    return ((block * kKvHeads + h) * kBlockSize + t % kBlockSize) * kHeadDim;
  }
  pe::PagedKV view() {
    pe::PagedKV kv;
    kv.k = k.data(), kv.v = v.data();
    kv.token_stride = kHeadDim;
    kv.head_stride = kBlockSize * kHeadDim;
    kv.block_stride = kKvHeads * kv.head_stride;
    kv.num_blocks = static_cast<int32_t>(table.size());
    kv.block_size = kBlockSize;
    kv.num_kv_heads = kKvHeads, kv.head_dim = kHeadDim;
    kv.dtype = k.dtype();
    return kv;
  }
};

double attention_error(const AttentionShape& shape, const Cache& cache, const Array& q, const Array& out, float scale) {
  for (int64_t i = 0; i < out.size(); ++i)
    if (std::isnan(out.at(i))) return NAN;
  ErrorNorm norm;
  Random random(29);
  for (int sample = 0; sample < 64; ++sample) {
    const int s = static_cast<int>(random.below(shape.num_seqs)), i = static_cast<int>(random.below(shape.num_queries));
    const int h = static_cast<int>(random.below(kHeads)), kv_head = h / (kHeads / kKvHeads);
    const int visible = shape.seq_len - shape.num_queries + i + 1;
    const int64_t row = ((static_cast<int64_t>(s) * shape.num_queries + i) * kHeads + h) * kHeadDim;
    std::vector<double> score(visible);
    double top = -INFINITY, sum = 0;
    for (int t = 0; t < visible; ++t) {
      double dot = 0;
      for (int d = 0; d < kHeadDim; ++d)
        dot += static_cast<double>(q.at(row + d)) * cache.k.at(cache.index(s, t, kv_head) + d);
      score[t] = dot * scale;
      top = std::max(top, score[t]);
    }
    std::vector<double> want(kHeadDim);
    for (int t = 0; t < visible; ++t) {
      const double weight = std::exp(score[t] - top);
      sum += weight;
      for (int d = 0; d < kHeadDim; ++d) want[d] += weight * cache.v.at(cache.index(s, t, kv_head) + d);
    }
    for (int d = 0; d < kHeadDim; ++d) norm.add(out.at(row + d), want[d] / sum);
  }
  return norm.value();
}

void bench_attention(Report& report, const AttentionShape& shape, DType dtype) {
  const std::string name = std::string("paged_attention ") + shape.name + " " + pe::name_of(dtype) + " H9/3 D64 S" +
                           std::to_string(shape.num_seqs) + " Q" + std::to_string(shape.num_queries) + " L" +
                           std::to_string(shape.seq_len) + " bs16";
  if (!report.wants(name)) return;
  const int64_t num_tokens = static_cast<int64_t>(shape.num_seqs) * shape.num_queries;
  Cache cache(shape.num_seqs, shape.seq_len, dtype);
  const Array q = Array::random(num_tokens * kHeads * kHeadDim, dtype, 31);
  Array out = Array::poisoned(q.size(), dtype);
  std::vector<int32_t> query_start, seq_lens(shape.num_seqs, shape.seq_len);
  for (int s = 0; s <= shape.num_seqs; ++s) query_start.push_back(s * shape.num_queries);
  pe::PagedAttentionParams p;
  p.out = out.data(), p.q = q.data();
  p.out_token_stride = p.q_token_stride = kHeads * kHeadDim;
  p.out_head_stride = p.q_head_stride = kHeadDim;
  p.kv = cache.view();
  p.block_tables = cache.table.data(), p.block_table_stride = cache.blocks_per_seq;
  p.query_start = query_start.data(), p.seq_lens = seq_lens.data();
  p.num_seqs = shape.num_seqs, p.num_tokens = num_tokens, p.num_heads = kHeads, p.max_seq_len = shape.seq_len;
  p.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
  p.dtype = dtype;
  pe::cpu::paged_attention(p);
  Case c;
  c.name = name;
  c.roofed = false;
  c.error = attention_error(shape, cache, q, out, p.scale);
  c.tolerance = 2 * tolerance(dtype);  // P is rounded too
  const double keys = shape.num_queries * (shape.seq_len - (shape.num_queries - 1) / 2.0) * shape.num_seqs;
  c.flops = 4.0 * keys * kHeads * kHeadDim;
  c.bytes = static_cast<double>(cache.k.bytes() + cache.v.bytes() + 2 * q.bytes());
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { pe::cpu::paged_attention(p); });
  report.add(c);
}

// ---- row-wise ops ---------------------------------------------------------------------------------------------------

void bench_norm(Report& report, int64_t rows, DType dtype) {
  const std::string name = std::string("rms_norm residual ") + pe::name_of(dtype) + " " + std::to_string(rows) + "x576";
  if (!report.wants(name)) return;
  const Array x = Array::random(rows * kHidden, dtype, 37), residual_in = Array::random(rows * kHidden, dtype, 41);
  const Array weight = Array::random(kHidden, dtype, 43);
  Array out = Array::poisoned(x.size(), dtype), residual = residual_in;
  pe::RmsNormParams p;
  p.out = out.data(), p.x = x.data(), p.residual = residual.data(), p.weight = weight.data();
  p.rows = rows, p.cols = kHidden, p.out_stride = p.x_stride = p.residual_stride = kHidden;
  p.eps = 1e-5f, p.dtype = dtype;
  pe::cpu::rms_norm(p);
  ErrorNorm norm;
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = r * kHidden; i < (r + 1) * kHidden; ++i) {
      norm.add(residual.at(i), static_cast<double>(x.at(i)) + residual_in.at(i));
      squares += static_cast<double>(residual.at(i)) * residual.at(i);
    }
    const double inverse = 1 / std::sqrt(squares / kHidden + p.eps);
    for (int64_t i = 0; i < kHidden; ++i)
      norm.add(out.at(r * kHidden + i), residual.at(r * kHidden + i) * inverse * weight.at(i));
  }
  Case c;
  c.name = name;
  c.roofed = false;
  c.error = norm.value(), c.tolerance = tolerance(dtype);
  c.bytes = 4.0 * x.bytes() + weight.bytes();
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { pe::cpu::rms_norm(p); });
  report.add(c);
}

void bench_silu(Report& report, int64_t rows, DType dtype) {
  constexpr int64_t kCols = 1536;
  const std::string name = std::string("silu_mul ") + pe::name_of(dtype) + " " + std::to_string(rows) + "x1536";
  if (!report.wants(name)) return;
  const Array gate_up = Array::random(rows * 2 * kCols, dtype, 47);
  Array out = Array::poisoned(rows * kCols, dtype);
  pe::SiluMulParams p;
  p.out = out.data(), p.gate_up = gate_up.data(), p.rows = rows, p.cols = kCols;
  p.out_stride = kCols, p.gate_up_stride = 2 * kCols, p.dtype = dtype;
  pe::cpu::silu_mul(p);
  ErrorNorm norm;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < kCols; ++i) {
      const double gate = gate_up.at(r * 2 * kCols + i), up = gate_up.at(r * 2 * kCols + kCols + i);
      norm.add(out.at(r * kCols + i), gate / (1 + std::exp(-gate)) * up);
    }
  Case c;
  c.name = name;
  c.roofed = false;
  c.error = norm.value(), c.tolerance = tolerance(dtype);
  c.bytes = static_cast<double>(gate_up.bytes() + out.bytes());
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { pe::cpu::silu_mul(p); });
  report.add(c);
}

void bench_rope_write(Report& report, int64_t num_tokens, DType dtype) {
  const std::string name = std::string("rope_write_kv ") + pe::name_of(dtype) + " T" + std::to_string(num_tokens);
  if (!report.wants(name)) return;
  constexpr int kMaxPosition = 1024, kHalf = kHeadDim / 2, kRow = (kHeads + 2 * kKvHeads) * kHeadDim;
  Array qkv = Array::random(num_tokens * kRow, dtype, 53);
  const Array before = qkv;
  Cache cache(1, static_cast<int>(num_tokens), dtype);
  std::vector<float> table(kMaxPosition * kHeadDim);
  for (int t = 0; t < kMaxPosition; ++t)
    for (int i = 0; i < kHalf; ++i) {
      const double angle = t * std::pow(10000.0, -2.0 * i / kHeadDim);
      table[t * kHeadDim + i] = static_cast<float>(std::cos(angle));
      table[t * kHeadDim + kHalf + i] = static_cast<float>(std::sin(angle));
    }
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  for (int t = 0; t < num_tokens; ++t) {
    positions.push_back(t % kMaxPosition);
    slots.push_back(static_cast<int64_t>(cache.table[t / kBlockSize]) * kBlockSize + t % kBlockSize);
  }
  pe::RopeWriteKvParams p;
  p.qkv = qkv.data(), p.positions = positions.data(), p.slot_mapping = slots.data(), p.cos_sin = table.data();
  p.kv = cache.view(), p.num_tokens = num_tokens, p.qkv_stride = kRow, p.max_position = kMaxPosition;
  p.num_heads = kHeads, p.rotary_dim = kHeadDim, p.dtype = dtype;
  pe::cpu::rope_write_kv(p);
  ErrorNorm norm;
  for (int t = 0; t < num_tokens; ++t)
    for (int h = 0; h < kHeads + 2 * kKvHeads; ++h)
      for (int i = 0; i < kHeadDim; ++i) {
        const int64_t row = static_cast<int64_t>(t) * kRow + h * kHeadDim;
        const double c = table[positions[t] * kHeadDim + i % kHalf],
                     s = table[positions[t] * kHeadDim + kHalf + i % kHalf];
        const double other = before.at(row + (i + kHalf) % kHeadDim);
        const double rotated = before.at(row + i) * c + (i < kHalf ? -other : other) * s;
        const bool is_q = h < kHeads, is_v = h >= kHeads + kKvHeads;
        const double got = is_q   ? qkv.at(row + i)
                           : is_v ? cache.v.at(cache.index(0, t, h - kHeads - kKvHeads) + i)
                                  : cache.k.at(cache.index(0, t, h - kHeads) + i);
        norm.add(got, is_v ? before.at(row + i) : rotated);
      }
  Case c;
  c.name = name;
  c.roofed = false;
  c.error = norm.value(), c.tolerance = tolerance(dtype);
  c.bytes = 2.0 * qkv.bytes();
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { pe::cpu::rope_write_kv(p); });
  report.add(c);
}

// The draw itself is proven in the tests; here greedy rows against the plain argmax, then the filtered case is timed.
void bench_sampling(Report& report, int64_t rows) {
  const std::string name = "sample f32 V49152 B" + std::to_string(rows) + " top-k 50 top-p 0.95";
  if (!report.wants(name)) return;
  const Array logits = Array::random(rows * kVocab, DType::kF32, 59, 3.0f);
  std::vector<float> temperature(rows, 0.0f), top_p(rows, 0.95f), min_p(rows, 0.0f);
  std::vector<int32_t> top_k(rows, 50), positions(rows, 7), token_ids(rows, -2);
  std::vector<int64_t> seeds(rows, 1);
  pe::SampleParams p;
  p.token_ids = token_ids.data(), p.logits = static_cast<const float*>(logits.data());
  p.num_rows = rows, p.vocab_size = p.logits_stride = kVocab;
  p.temperature = temperature.data(), p.top_p = top_p.data(), p.min_p = min_p.data(), p.top_k = top_k.data();
  p.seeds = seeds.data(), p.positions = positions.data();
  pe::cpu::sample(p);
  Case c;
  c.name = name;
  c.roofed = false;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = p.logits + r * kVocab;
    c.error += token_ids[r] != std::max_element(row, row + kVocab) - row;
  }
  c.bytes = static_cast<double>(logits.bytes());
  temperature.assign(rows, 0.8f);
  if (Report::correct(c)) c.times_us = time_us(report.options(), [&](int) { pe::cpu::sample(p); });
  report.add(c);
}

int run(const Options& options) {
  pe::cpu::set_num_threads(options.threads > 0 ? options.threads
                                               : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  if (!options.isa.empty()) pe::cpu::set_isa(options.isa);
  Report report(options, "pe::cpu, " + std::to_string(pe::cpu::num_threads()) + " threads, " + pe::cpu::isa());
  report.set_roof({read_bandwidth(options), 0});
  for (const Layer& layer : kDense) bench_dense(report, layer, DType::kBF16);
  for (const int64_t m : {1, 16}) bench_dense_step(report, m);
  bench_dense(report, kDense[2], DType::kF32);
  const AttentionShape shapes[] = {{"decode", 1, 1, 256},   {"decode", 1, 1, 2048},   {"decode", 16, 1, 256},
                                   {"decode", 16, 1, 1024}, {"prefill", 1, 512, 512}, {"chunk", 1, 128, 1024}};
  for (const AttentionShape& shape : shapes) bench_attention(report, shape, DType::kBF16);
  bench_attention(report, shapes[0], DType::kF32);
  for (const int64_t rows : {1, 16, 512}) bench_norm(report, rows, DType::kBF16);
  for (const int64_t rows : {1, 16, 512}) bench_silu(report, rows, DType::kBF16);
  for (const int64_t rows : {1, 16, 512}) bench_rope_write(report, rows, DType::kBF16);
  for (const int64_t rows : {1, 16}) bench_sampling(report, rows);
  return report.exit_code();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse_options(argc, argv));
  } catch (const pe::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
