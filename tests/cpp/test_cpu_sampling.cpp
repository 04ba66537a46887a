// SPDX-License-Identifier: Apache-2.0
// Sampling on the CPU against the contract written out: a full sort, double precision, one token at a time. Ties, masks
// and broken rows; every filter alone and paired; the frequencies of the draw; rows that do not notice their
// neighbours.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/math_vector.h"
#include "cpu/sampling_rows.h"
#include "pe/parallel.h"
#include "pe/sampling.h"

namespace {

using namespace pe;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kUntouched = -77;
int num_failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  if (++num_failures <= 20) std::printf("FAILED %s (%s)\n", what.c_str(), cpu::isa());
}

struct Row {
  std::vector<float> logits;
  float temperature = 1, top_p = 1, min_p = 0;
  int32_t top_k = 0;
  int64_t seed = 0;
  int32_t position = 0;
  std::string text() const {
    return "V=" + std::to_string(logits.size()) + " t=" + std::to_string(temperature) +
           " top_p=" + std::to_string(top_p) + " min_p=" + std::to_string(min_p) + " top_k=" + std::to_string(top_k) +
           " seed=" + std::to_string(seed);
  }
};

// All rows in one call, after `shift` rows of padding, parameters stored in reverse order, logits strided with NaN
// between.
std::vector<int32_t> sample(const std::vector<Row>& rows, int shift = 0) {
  const size_t vocab_size = rows[0].logits.size(), stride = vocab_size + 5, n = rows.size() + shift;
  std::vector<float> logits(n * stride, kNaN), temperature(n, kNaN), top_p(n, kNaN), min_p(n, kNaN);
  std::vector<int32_t> top_k(n, -5), param_rows(n, -1), positions(n, -5), token_ids(n, kUntouched);
  std::vector<int64_t> seeds(n, -5);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t b = i + shift, r = rows.size() - 1 - i;
    std::copy(rows[i].logits.begin(), rows[i].logits.end(), logits.begin() + b * stride);
    temperature[r] = rows[i].temperature, top_p[r] = rows[i].top_p, min_p[r] = rows[i].min_p, top_k[r] = rows[i].top_k;
    seeds[r] = rows[i].seed, positions[b] = rows[i].position, param_rows[b] = static_cast<int32_t>(r);
  }
  SampleParams p;
  p.token_ids = token_ids.data(), p.logits = logits.data(), p.num_rows = n, p.vocab_size = vocab_size,
  p.logits_stride = stride;
  p.param_rows = param_rows.data(), p.temperature = temperature.data(), p.top_p = top_p.data(), p.min_p = min_p.data();
  p.top_k = top_k.data(), p.seeds = seeds.data(), p.positions = positions.data();
  cpu::sample(p);
  for (int i = 0; i < shift; ++i) expect(token_ids[i] == kUntouched, "padding row was written");
  return {token_ids.begin() + shift, token_ids.end()};
}

uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6b;
  h ^= h >> 13;
  h *= 0xc2b2ae35;
  h ^= h >> 16;
  return h;
}

double exponential(int64_t seed, int32_t position, uint32_t token) {
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  const uint32_t key = mix(mix(mix(low + 0x9e3779b9) ^ high) + static_cast<uint32_t>(position));
  const uint32_t h = mix(mix(key ^ token) + key);
  return h >= 1u << 31 ? -std::log1p(-(4294967296.0 - h - 0.5) * 0x1p-32) : -std::log((h + 0.5) * 0x1p-32);
}

// The contract, word for word. `clear` is false when a mass stands so near to top_p that rounding decides.
struct Expected {
  int32_t token = -1;
  std::vector<int32_t> survivors;
  bool clear = true;
};

Expected reference(const Row& row) {
  Expected e;
  const int64_t n = static_cast<int64_t>(row.logits.size());
  std::vector<std::pair<float, int32_t>> s;
  for (int32_t i = 0; i < n; ++i) {
    const float x = row.logits[i];
    if (std::isnan(x) || x == kInfinity) return e;
    if (x != -kInfinity) s.push_back({row.temperature == 0 ? x : x / row.temperature, i});
  }
  if (s.empty()) return e;
  std::stable_sort(s.begin(), s.end(), [](auto a, auto b) { return a.first > b.first; });
  if (row.temperature == 0) {
    e.token = s[0].second;
    return e;
  }
  const float top = s[0].first;
  const auto cut_below = [&](float low) {
    s.erase(std::remove_if(s.begin(), s.end(), [low](auto x) { return x.first < low; }), s.end());
  };
  if (row.min_p > 0) cut_below(top + std::log(row.min_p));
  if (row.top_k > 0 && row.top_k < int64_t(s.size())) cut_below(s[row.top_k - 1].first);
  if (row.top_p < 1) {
    double total = 0, above = 0;
    for (const auto& x : s) total += std::exp(double(x.first) - top);
    const double limit = row.top_p * total;
    size_t i = 0;
    while (i < s.size()) {
      if (std::abs(above - limit) < 1e-6 * total && i > 0) e.clear = false;
      if (above >= limit && i > 0) break;
      const float value = s[i].first;
      for (; i < s.size() && s[i].first == value; ++i) above += std::exp(double(value) - top);
    }
    s.resize(i);
  }
  double best = -kInfinity;
  std::sort(s.begin(), s.end(), [](auto a, auto b) { return a.second < b.second; });
  for (const auto& x : s) {
    e.survivors.push_back(x.second);
    const double score = x.first - std::log(exponential(row.seed, row.position, x.second));
    if (score > best) best = score, e.token = x.second;
  }
  return e;
}

std::vector<float> random_logits(std::mt19937& rng, size_t n, float scale, bool rounded) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> logits(n);
  for (float& x : logits) x = rounded ? std::round(normal(rng)) : normal(rng);
  return logits;
}

void test_greedy() {
  std::mt19937 rng(1);
  for (const size_t n : {size_t{1}, size_t{7}, size_t{16}, size_t{33}, size_t{1000}, size_t{49152}}) {
    for (int round = 0; round < 10; ++round) {
      Row row;
      row.logits = random_logits(rng, n, 3, round % 2 == 0);
      row.temperature = 0;
      row.top_k = round;  // without effect
      if (round > 4) {
        for (float& x : row.logits) x = rng() % 3 ? -kInfinity : x;
        row.logits[n / 2] = -1e30f;
      }
      if (round == 3) std::fill(row.logits.begin(), row.logits.end(), -0.5f);
      expect(sample({row}, round % 3)[0] == reference(row).token, "greedy " + row.text());
    }
  }
}

void test_broken_rows() {
  std::mt19937 rng(2);
  for (const float temperature : {0.0f, 0.7f}) {
    for (const float top_p : {1.0f, 0.9f}) {
      for (const size_t n : {size_t{5}, size_t{64}, size_t{77}}) {
        for (size_t at = 0; at < n; ++at) {
          Row good;
          good.temperature = temperature, good.top_p = top_p, good.seed = 9;
          good.logits = random_logits(rng, n, 2, false);
          Row nan = good, infinite = good, empty = good;
          nan.logits[at] = kNaN, infinite.logits[at] = kInfinity;
          empty.logits.assign(n, -kInfinity);
          const auto ids = sample({nan, good, infinite, good, empty, good});
          const int32_t token = reference(good).token;
          expect(ids == std::vector<int32_t>{-1, token, -1, token, -1, token}, "broken rows " + good.text());
        }
      }
    }
  }
}

void test_filters() {
  std::mt19937 rng(3);
  int num_unclear = 0;
  for (const size_t n : {size_t{1}, size_t{19}, size_t{300}, size_t{5000}, size_t{49152}}) {
    std::vector<Row> rows;
    for (const float top_p : {1.0f, 0.9f, 0.3f, 0.999f, 1e-6f}) {
      for (const float min_p : {0.0f, 0.05f, 1.0f}) {
        for (const int32_t top_k : {0, 1, 5, 50, 1000, -1}) {
          for (int round = 0; round < 4; ++round) {
            Row row;
            row.top_p = top_p, row.min_p = min_p, row.top_k = top_k;
            row.temperature = round == 1 ? 0.3f : round == 2 ? 1.7f : 1.0f;
            row.logits = random_logits(rng, n, round == 3 ? 8 : 2, round == 2);
            if (round == 0) std::sort(row.logits.begin(), row.logits.end());
            if (round == 1 && n > 10) {
              for (float& x : row.logits) x = rng() % 4 ? -kInfinity : x;
              row.logits[3] = 1;
            }
            row.seed = static_cast<int64_t>(uint64_t{rng()} << 32 | rng()), row.position = rng() % 1000;
            rows.push_back(row);
          }
        }
      }
    }
    const auto ids = sample(rows);
    for (size_t i = 0; i < rows.size(); i += n > 5000 ? 7 : 1) {
      const Expected e = reference(rows[i]);
      num_unclear += !e.clear;
      expect(!e.clear || ids[i] == e.token,
             rows[i].text() + ": got " + std::to_string(ids[i]) + ", expected " + std::to_string(e.token));
    }
  }
  expect(num_unclear < 40, "too many unclear cases: " + std::to_string(num_unclear));
}

// Every survivor turns up, nothing else does, and as often as its probability says.
void test_frequencies(Row row) {
  const int num_draws = 20000;
  const Expected e = reference(row);
  double total = 0;
  for (const int32_t id : e.survivors) total += std::exp(double(row.logits[id] / row.temperature));
  std::vector<Row> rows(num_draws, row);
  for (int i = 0; i < num_draws; ++i) rows[i].seed = i % 100, rows[i].position = i / 100;
  std::vector<int> counts(row.logits.size());
  for (const int32_t id : sample(rows)) ++counts[std::max(id, 0)];
  double chi_square = 0;
  int num_drawn = 0;
  for (const int32_t id : e.survivors) {
    const double expected = num_draws * std::exp(double(row.logits[id] / row.temperature)) / total;
    chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
    num_drawn += counts[id];
  }
  const double freedom = double(e.survivors.size()) - 1;
  expect(num_drawn == num_draws, "drew what was filtered out: " + row.text());
  // The mean plus 5 standard deviations of chi square.
  expect(chi_square < freedom + 5 * std::sqrt(2 * freedom),
         "chi square " + std::to_string(chi_square) + " of " + std::to_string(freedom) + ": " + row.text());
}

// Two thousand tokens crowd round the cut of each filter, one half a hair above it, the other a hair below: so a cut
// that is off by a hair draws from the wrong half at once.
void test_edges() {
  const int n = 2001;
  const auto crowd = [&](float cut) {
    Row row;
    row.logits.assign(n, cut - 1e-4f);
    row.logits[1000] = 0;
    for (int i = 1; i < n; i += 2) row.logits[i] = i == 1000 ? 0 : cut + 1e-4f;
    return row;
  };
  Row by_min_p = crowd(std::log(0.5f)), by_top_k = crowd(-1), by_top_p = crowd(-1);
  by_min_p.min_p = 0.5f;
  by_top_k.top_k = n / 2 + 1;
  const double upper = 1 + 1000 * std::exp(-1 + 1e-4), lower = 1000 * std::exp(-1 - 1e-4);
  by_top_p.top_p = static_cast<float>((upper - 0.1) / (upper + lower));
  for (const Row& row : {by_min_p, by_top_k, by_top_p}) {
    std::vector<Row> rows(60, row);
    for (int i = 0; i < 60; ++i) rows[i].seed = i;
    int num_upper = 0;
    for (const int32_t id : sample(rows)) num_upper += id == 1000 || (id >= 0 && id % 2 == 1);
    expect(num_upper == 60, "drew below the cut: " + row.text());
    for (Row& open : rows) open.top_k = 0, open.top_p = 1, open.min_p = 0;
    num_upper = 0;
    for (const int32_t id : sample(rows)) num_upper += id == 1000 || (id >= 0 && id % 2 == 1);
    expect(num_upper < 50, "the filter is on when it is off: " + row.text());
  }
}

void test_invariance() {
  std::mt19937 rng(4);
  Row row;
  row.logits = random_logits(rng, 3001, 2, false);
  row.top_p = 0.95f, row.top_k = 40, row.seed = -3, row.position = 17;
  const int32_t alone = sample({row})[0];
  std::vector<Row> crowd;
  for (int i = 0; i < 13; ++i) {
    Row other = row;
    other.logits = random_logits(rng, 3001, 5, i % 2);
    other.temperature = i % 3 * 0.5f, other.seed = i;
    if (i == 6) other.logits[0] = kNaN;
    crowd.push_back(other);
  }
  for (const int threads : {1, 2, 5}) {
    cpu::set_num_threads(threads);
    for (const size_t place : {0, 6, 13}) {
      auto rows = crowd;
      rows.insert(rows.begin() + place, row);
      expect(sample(rows, 3)[place] == alone, "place " + std::to_string(place) + " in the batch");
    }
  }
  cpu::set_num_threads(2);
  Row other = row;
  int num_same = 0;
  for (int i = 0; i < 50; ++i) other.position = 100 + i, num_same += sample({other})[0] == alone;
  expect(num_same < 25, "positions draw alike");
}

double ulp(double x) { return std::ldexp(1.0, std::max(std::ilogb(x), -126) - 23); }

// The vector types of this file's own flags, over the whole range.
void test_exp() {
  using cpu::Float;
  float in[Float::kWidth], out[Float::kWidth];
  double worst = 0;
  for (int64_t i = 0; i < 2000000; i += Float::kWidth) {
    for (int lane = 0; lane < Float::kWidth; ++lane) in[lane] = -87.0f * static_cast<float>(i + lane) / 2000000.0f;
    cpu::exp_negative(Float::load(in)).store(out);
    for (int lane = 0; lane < Float::kWidth; ++lane) {
      const double expected = std::exp(double(in[lane]));
      worst = std::max(worst, std::abs(out[lane] - expected) / ulp(expected));
    }
  }
  expect(worst <= 2, "exp is off by " + std::to_string(worst) + " ulp");
  for (const auto& [x, y] :
       {std::pair{0.0f, 1.0f}, {-0.0f, 1.0f}, {-87.5f, 0.0f}, {-1e30f, 0.0f}, {-kInfinity, 0.0f}}) {
    expect(cpu::exp_negative(Float::splat(x)).first() == y, "exp of " + std::to_string(x));
  }
  expect(std::isnan(cpu::exp_negative(Float::splat(kNaN)).first()), "exp of NaN");
}

const cpu::SampleKernels& kernels_of([[maybe_unused]] const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return cpu::sample_kernels_avx2();
  if (isa != "generic") return cpu::sample_kernels_avx512();
#endif
  return cpu::sample_kernels_generic();
}

// Every instruction set's exp, seen through the masses: down to 2^-16 they hold all its bits.
void test_mass(const cpu::SampleKernels& kernels) {
  float scores[cpu::kScorePadding];
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    std::fill(scores, scores + cpu::kScorePadding, -kInfinity);
    const float x = scores[i % cpu::kScorePadding] = -11.0f * static_cast<float>(i) / 200000.0f;
    const double mass = static_cast<double>(kernels.mass(scores, cpu::kScorePadding, 0, -20)) * 0x1p-40;
    worst = std::max(worst, std::abs(mass - std::exp(double(x))) / ulp(std::exp(double(x))));
  }
  expect(worst <= 2, "mass is off by " + std::to_string(worst) + " ulp");
}

void test_errors() {
  SampleParams p;
  p.vocab_size = 0;
  try {
    cpu::sample(p);
    expect(false, "vocab_size 0: no error");
  } catch (const Error& error) {
    expect(std::string(error.what()).find("vocab_size") != std::string::npos, "vocab_size 0: error text");
  }
}

void test_on_this_isa() {
  test_greedy();
  test_broken_rows();
  test_filters();
  test_edges();
  test_invariance();
  std::mt19937 rng(6);
  Row row;
  row.logits = random_logits(rng, 40, 1, false);
  test_frequencies(row);
  row.temperature = 0.5f, row.top_k = 20;
  test_frequencies(row);
  row.top_k = 0, row.top_p = 0.8f;
  test_frequencies(row);
  row.top_p = 1, row.min_p = 0.1f;
  test_frequencies(row);
}

}  // namespace

int main() {
  test_errors();
  test_exp();
  const std::string best = cpu::isa();
  for (const char* name : {"generic", "avx2", "avx512bf16", "amx"}) {
    cpu::set_isa(name);
    test_mass(kernels_of(name));
    test_on_this_isa();
    std::printf("%s: %s\n", name, num_failures ? "failed" : "ok");
    if (best == name) break;
  }
  if (num_failures) std::printf("%d checks failed\n", num_failures);
  return num_failures ? 1 : 0;
}
