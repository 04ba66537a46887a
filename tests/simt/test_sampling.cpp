// SPDX-License-Identifier: Apache-2.0
// pe::cuda::sample under the emulator against the contract in double precision, written from pe/sampling.h and not from
// the kernel.
//
// Where fp32 and double may honestly differ (a logit within rounding of a threshold, two scores within rounding of each
// other) either outcome passes; everything else must be the one right token.
#include <algorithm>
#include <limits>

#include "cuda/sampling/draw.cuh"
#include "harness.h"
#include "pe/sampling.h"

namespace {

using namespace pe;
using namespace pe::test;

constexpr float kInf = std::numeric_limits<float>::infinity();

// ---- the contract in double precision -------------------------------------------------------------------------------

struct Parameters {
  float temperature = 1, top_p = 1, min_p = 0;
  int32_t top_k = 0;
  int64_t seed = 0;
};

uint32_t mix(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

double minus_log_exponential(int64_t seed, int32_t position, int32_t token) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  uint32_t key = mix(static_cast<uint32_t>(bits) + 0x9e3779b9u);
  key = mix(key ^ static_cast<uint32_t>(bits >> 32));
  key = mix(key + static_cast<uint32_t>(position));
  const double h = mix(mix(key ^ static_cast<uint32_t>(token)) + key);
  const double unit = std::ldexp(1.0, -32);
  const double e = h >= 2147483648.0 ? -std::log1p(-(4294967296.0 - h - 0.5) * unit) : -std::log((h + 0.5) * unit);
  return -std::log(e);
}

enum class Fate { kOut, kEither, kIn };

std::vector<Fate> survivors(const std::vector<float>& s, const Parameters& p) {
  const double largest = *std::max_element(s.begin(), s.end());
  std::vector<Fate> fate(s.size(), Fate::kIn);
  const double floor = p.min_p > 0 ? largest + std::log(static_cast<double>(p.min_p)) : -kInf;
  const double slack = 1e-6 * (1 + std::abs(largest));
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] == -kInf || s[i] < floor - slack)
      fate[i] = Fate::kOut;
    else if (s[i] < floor + slack && s[i] != largest)
      fate[i] = Fate::kEither;
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < s.size(); ++i)
    if (fate[i] != Fate::kOut) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return s[a] > s[b]; });
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size()) {
    const float kth = s[order[static_cast<size_t>(p.top_k) - 1]];
    while (s[order.back()] < kth) {
      fate[order.back()] = Fate::kOut;
      order.pop_back();
    }
  }
  if (p.top_p >= 1) return fate;
  double total = 0, above = 0;
  for (const size_t i : order) total += std::exp(s[i] - largest);
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    double equal = 0;
    for (; end < order.size() && s[order[end]] == s[order[i]]; ++end) equal += std::exp(s[order[end]] - largest);
    const double margin = above / total - p.top_p;
    const Fate here = i == 0 || margin < -1e-6 ? Fate::kIn : margin < 1e-6 ? Fate::kEither : Fate::kOut;
    for (; i < end; ++i) fate[order[i]] = std::min(fate[order[i]], here);
    above += equal;
  }
  return fate;
}

// "" when `token` is what the contract asks for.
std::string verdict(const std::vector<float>& logits, const Parameters& p, int32_t position, int32_t token) {
  bool bad = true;
  for (const float x : logits) bad &= x == -kInf;
  for (const float x : logits) bad |= std::isnan(x) || x == kInf;
  if (bad) return token == -1 ? "" : "expected -1, got " + std::to_string(token);
  if (token < 0 || token >= static_cast<int32_t>(logits.size())) return "got token " + std::to_string(token);
  if (p.temperature == 0) {
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();  // the first of equals
    return best == token ? "" : "expected " + std::to_string(best) + ", got " + std::to_string(token);
  }
  std::vector<float> s;
  for (const float x : logits) s.push_back(x / p.temperature);
  const std::vector<Fate> fate = survivors(s, p);
  if (fate[static_cast<size_t>(token)] == Fate::kOut) return "token " + std::to_string(token) + " was filtered out";
  const auto score = [&](size_t i) { return s[i] + minus_log_exponential(p.seed, position, static_cast<int32_t>(i)); };
  double best = -kInf;
  for (size_t i = 0; i < s.size(); ++i)
    if (fate[i] == Fate::kIn) best = std::max(best, score(i));
  const double got = score(static_cast<size_t>(token));
  if (got >= best - 1e-6 * (10 + std::abs(best))) return "";
  return "token " + std::to_string(token) + " scores " + std::to_string(got) + ", the best " + std::to_string(best);
}

// ---- one call -------------------------------------------------------------------------------------------------------

struct Batch {
  std::vector<std::vector<float>> logits;
  std::vector<Parameters> parameters;
  std::vector<int32_t> positions;
  std::vector<int32_t> padding;          // rows that are padding
  int64_t extra_stride = 0, offset = 0;  // elements: strides and pointers that allow no vectors

  void add(std::vector<float> row, Parameters p, int32_t position = 5) {
    logits.push_back(std::move(row));
    parameters.push_back(p);
    positions.push_back(position);
  }

  // Runs the kernels; parameters are stored in reverse order behind param_rows, unused memory is NaN.
  std::vector<int32_t> run() const {
    const int64_t rows = static_cast<int64_t>(logits.size()), vocab = static_cast<int64_t>(logits[0].size());
    const int64_t stride = vocab + extra_stride;
    Buffer<float> x(rows * stride + offset), temperature(rows), top_p(rows), min_p(rows);
    Buffer<int32_t> top_k(rows), param_rows(rows), position(rows), ids(rows);
    Buffer<int64_t> seeds(rows);
    for (int64_t i = 0; i < rows; ++i) {
      const size_t u = static_cast<size_t>(i);
      const bool pad = std::count(padding.begin(), padding.end(), i) > 0;
      const int64_t r = rows - 1 - i;
      param_rows[i] = pad ? -1 : static_cast<int32_t>(r);
      if (pad) continue;  // all of its memory stays poisoned
      std::copy(logits[u].begin(), logits[u].end(), x.data() + offset + i * stride);
      temperature[r] = parameters[u].temperature, top_p[r] = parameters[u].top_p, min_p[r] = parameters[u].min_p;
      top_k[r] = parameters[u].top_k, seeds[r] = parameters[u].seed, position[i] = positions[u];
    }
    SampleParams p;
    p.token_ids = ids.data(), p.logits = x.data() + offset;
    p.num_rows = rows, p.vocab_size = vocab, p.logits_stride = stride, p.param_rows = param_rows.data();
    p.temperature = temperature.data(), p.top_p = top_p.data(), p.min_p = min_p.data(), p.top_k = top_k.data();
    p.seeds = seeds.data(), p.positions = position.data();
    Buffer<unsigned char> workspace(static_cast<int64_t>(cuda::sample_workspace_bytes(rows, vocab)));
    const auto before = x.bytes();
    cuda::sample(p, {workspace.data(), static_cast<size_t>(workspace.size())}, nullptr);
    EXPECT(workspace.guards_intact() && ids.guards_intact() && x.bytes() == before, "memory");
    for (const int32_t i : padding) EXPECT(ids.untouched(i, 1), "padding row %d written", i);
    return {ids.data(), ids.data() + rows};
  }

  void check(const char* what) const {
    const std::vector<int32_t> ids = run();
    for (size_t i = 0; i < ids.size(); ++i) {
      if (std::count(padding.begin(), padding.end(), static_cast<int32_t>(i)) > 0) continue;
      const Parameters& p = parameters[i];
      const std::string wrong = verdict(logits[i], p, positions[i], ids[i]);
      EXPECT(wrong.empty(), "%s: V %zu row %zu T %g top_k %d top_p %g min_p %g: %s", what, logits[i].size(), i,
             p.temperature, p.top_k, p.top_p, p.min_p, wrong.c_str());
    }
  }
};

// ---- distributions --------------------------------------------------------------------------------------------------

float normal(Random& random) {
  float sum = 0;
  for (int i = 0; i < 6; ++i) sum += random.uniform();
  return sum * 0.70710678f;
}

enum class Shape { kFlat, kUsual, kPeaked, kEqual, kTies, kMasked };
constexpr Shape kShapes[] = {Shape::kFlat, Shape::kUsual, Shape::kPeaked, Shape::kEqual, Shape::kTies, Shape::kMasked};

std::vector<float> make_row(Shape shape, int64_t vocab, uint64_t seed) {
  Random random(seed);
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& x : row) {
    x = normal(random);
    if (shape == Shape::kUsual) x = 3 * x - 4;
    if (shape == Shape::kPeaked) x = 2 * x - 20;
    if (shape == Shape::kEqual) x = -1.25f;
    if (shape == Shape::kTies) x = std::round(3 * x) / 2;
    if (shape == Shape::kMasked && random.below(4) != 0) x = -kInf;
  }
  if (shape == Shape::kPeaked) row[static_cast<size_t>(random.below(vocab))] = 9;
  if (shape == Shape::kMasked) row[static_cast<size_t>(random.below(vocab))] = 2;  // one is finite
  return row;
}

// ---- tests ----------------------------------------------------------------------------------------------------------

void test_greedy() {
  Batch batch;
  Random random(1);
  for (int i = 0; i < 12; ++i) {
    std::vector<float> row = make_row(kShapes[i % 6], 1000, 100 + static_cast<uint64_t>(i));
    if (i >= 6) {  // equal maxima in several groups, warps and threads
      for (int j = 0; j < 5; ++j) row[static_cast<size_t>(random.below(1000))] = 50;
    }
    batch.add(row, {0, 0.5f, 0.5f, 3, i});
  }
  std::vector<float> zeros(1000, -1.0f);
  zeros[998] = 0.0f, zeros[401] = -0.0f, zeros[999] = 0.0f;  // -0 and +0 are equal
  batch.add(zeros, {0});
  for_each_order([&] { batch.check("greedy"); });
}

// Every subset of the filters on every shape, each row with parameters of its own.
Batch filters_batch(int64_t vocab, Shape shape, int64_t num_rows) {
  Batch batch;
  const float temperatures[] = {1, 0.3f, 2.5f};
  const int32_t top_ks[] = {1, 5, 50, 300, 1000};
  const float top_ps[] = {0.95f, 0.5f, 0.02f, 0.999f}, min_ps[] = {0.05f, 0.5f, 1e-3f, 1.0f};
  Random random(static_cast<uint64_t>(vocab) * 7 + static_cast<uint64_t>(shape));
  for (int64_t i = 0; i < num_rows; ++i) {
    Parameters p;
    p.temperature = temperatures[random.below(3)];
    if (i & 1) p.top_k = top_ks[random.below(5)];
    if (i & 2) p.top_p = top_ps[random.below(4)];
    if (i & 4) p.min_p = min_ps[random.below(4)];
    p.seed = static_cast<int64_t>(random.next());
    batch.add(make_row(shape, vocab, random.next()), p, static_cast<int32_t>(random.below(100000)));
  }
  return batch;
}

void test_filters() {
  filters_batch(1, Shape::kFlat, 8).check("filters");
  for (const Shape shape : {Shape::kUsual, Shape::kTies, Shape::kMasked}) filters_batch(7, shape, 8).check("filters");
  for (const Shape shape : kShapes) filters_batch(1000, shape, 8).check("filters");
  const Batch batch = filters_batch(1000, Shape::kTies, 8);
  for_each_order([&] { batch.check("filters, every order"); });
}

void test_large_vocabulary() {
  simt::options().order = simt::Order::kRandom;
  for (const Shape shape : kShapes) filters_batch(49152, shape, 8).check("large");
  // what no coarse bound serves: large top-k, flat nuclei, everything equal, a crowd just below the bound
  Batch batch;
  for (const int32_t top_k : {448, 449, 2000, 20000, 49151, 49152}) {
    batch.add(make_row(Shape::kFlat, 49152, 3), {0.7f, 1, 0, top_k, top_k});
    batch.add(make_row(Shape::kTies, 49152, 4), {0.7f, 0.9f, 0, top_k, top_k});
  }
  for (const float top_p : {0.1f, 0.7f, 0.99f}) {
    batch.add(make_row(Shape::kFlat, 49152, 5), {1.3f, top_p, 0, 0, 8});
    batch.add(make_row(Shape::kEqual, 49152, 6), {1.0f, top_p, 0, 50, 9});
    batch.add(make_row(Shape::kUsual, 49152, 6), {1.0f, top_p, 1e-4f, 0, 9});
    std::vector<float> two_levels =
        make_row(Shape::kFlat, 49152, 7);  // min-p keeps 5000 and drops three quarters of the mass
    for (size_t i = 0; i < two_levels.size(); ++i) two_levels[i] = two_levels[i] * 0.01f - (i < 5000 ? 0 : 1.2f);
    batch.add(two_levels, {1.0f, top_p, 0.5f, 0, 3});
  }
  std::vector<float> crowd(49152, 3.0f);
  crowd[77] = 3.5f;
  batch.add(crowd, {1, 0.9f, 0.01f, 2, 1});
  std::vector<float> blocks = make_row(Shape::kFlat, 49152, 11);  // all large logits in a few groups
  for (size_t i = 4096; i < 4096 + 600; ++i) blocks[i] += 6;
  for (const int32_t top_k : {50, 0}) batch.add(blocks, {0.9f, 0.95f, 0, top_k, 2});
  batch.check("large, whole row");
  simt::options().order = simt::Order::kForward;
}

void test_bad_rows() {
  for (const int64_t vocab : {7, 20000}) {
    Batch batch;
    const float poison[] = {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), kInf};
    int i = 0;
    for (const Parameters& p : {Parameters{0}, Parameters{1}, Parameters{1, 0.9f, 0, 5}, Parameters{1, 0.9f}}) {
      for (const float bad : poison) {
        batch.add(make_row(Shape::kMasked, vocab, 40), p);  // a neighbour that must not notice
        batch.add(batch.logits.back(), p);
        batch.logits.back()[static_cast<size_t>(i++ % 2 ? vocab - 1 : vocab / 2)] = bad;
      }
      batch.add(std::vector<float>(static_cast<size_t>(vocab), -kInf), p);
    }
    const std::vector<int32_t> ids = batch.run();
    for (size_t r = 0; r < ids.size(); ++r) {
      EXPECT(verdict(batch.logits[r], batch.parameters[r], 5, ids[r]).empty(), "bad rows: V %ld row %zu: token %d",
             static_cast<long>(vocab), r, ids[r]);
    }
  }
}

// Extreme but finite inputs: a temperature that overflows s, logits near the end of the range.
void test_extremes() {
  Batch batch;
  std::vector<float> row = {1e30f, -1e30f, 3e38f, -3e38f, 0, 2};
  for (const Parameters& p : {Parameters{1e-30f}, Parameters{1e-30f, 0.9f, 0.1f, 3}, Parameters{1e30f, 0.5f, 0, 2},
                              Parameters{1, 0.9f, 0, 0}, Parameters{1e-38f, 1, 0.5f, 0}}) {
    batch.add(row, p);
  }
  for (const int32_t token : batch.run()) EXPECT(token >= 0 && token < 6, "extremes: token %d", token);
}

void test_padding_and_layout() {
  Batch batch = filters_batch(1000, Shape::kUsual, 8);
  batch.padding = {0, 3, 7};
  batch.check("padding");
  const std::vector<int32_t> expected = batch.run();
  batch.extra_stride = 3, batch.offset = 1;  // no 16-byte vectors
  EXPECT(batch.run() == expected, "unaligned rows differ");
}

// A row's token does not depend on where it stands, on its neighbours or on the order of threads.
void test_invariance() {
  const int64_t vocab = 20011;
  const Batch all = filters_batch(vocab, Shape::kUsual, 8);
  const std::vector<int32_t> expected = all.run();
  for_each_order([&] {
    Batch shuffled;
    for (size_t i = 0; i < 5; ++i) {
      const size_t from = i * 5 % 8;
      shuffled.add(all.logits[from], all.parameters[from], all.positions[from]);
    }
    const std::vector<int32_t> ids = shuffled.run();
    for (size_t i = 0; i < 5; ++i) EXPECT(ids[i] == expected[i * 5 % 8], "row %zu moved: %d", i * 5 % 8, ids[i]);
  });
}

// The race itself over many seeds, without blocks around it: chi-square against its 1e-4 quantile for 6 degrees of
// freedom.
void test_distribution() {
  const float row[] = {1.0f, 0.2f, -0.5f, 1.7f, -3.0f, 0.9f, -2.0f};
  constexpr int kDraws = 100000, kTokens = 7;
  int counts[kTokens] = {};
  Random random(17);
  for (int i = 0; i < kDraws; ++i) {
    // consecutive seeds and positions must be as good as random ones
    cuda::Race race(cuda::draw_key(i % 2 ? static_cast<uint64_t>(i) : random.next(), i % 3));
    for (int token = 0; token < kTokens; ++token) race.offer(row[token], token, cuda::draw_bits(race.key, token));
    ++counts[race.token];
  }
  double total = 0, chi_square = 0;
  for (const float s : row) total += std::exp(s);
  for (int i = 0; i < kTokens; ++i) {
    const double expected = kDraws * std::exp(row[i]) / total;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT(chi_square < 27.86, "chi-square %.1f", chi_square);
  cuda::Race tie(1);  // candidates come in any order, and equal scores go to the lowest id
  for (const int token : {5, 3, 9}) tie.offer(1.5f, token, 77);
  EXPECT(tie.token == 3, "tie: %d", tie.token);
}

// E in fp32 at both ends of its range, and the shortcut by which most tokens are passed over: never too small.
void test_exponential() {
  Random random(23);
  for (int i = 0; i < 200000; ++i) {
    uint32_t h = static_cast<uint32_t>(random.next());
    if (i % 4 == 1) h >>= random.below(32);
    if (i % 4 == 2) h = ~(h >> random.below(32));
    const double unit = std::ldexp(1.0, -32), x = h;
    const double expected = h >> 31 ? -std::log1p(-(4294967295.0 - x + 0.5) * unit) : -std::log((x + 0.5) * unit);
    EXPECT(std::abs(cuda::exponential(h) / expected - 1) < 1e-6, "E(%u) = %g, not %g", h, cuda::exponential(h),
           expected);
    EXPECT(cuda::luck_bound(h) + cuda::kBoundSlack / 2 >= -std::log(expected), "bound of %u", h);
  }
}

void test_errors() {
  SampleParams p;
  p.num_rows = 2, p.vocab_size = 0;
  EXPECT(contains(error_of([&] { cuda::sample(p, {}, nullptr); }), "vocab_size"), "vocab_size");
  p.vocab_size = 10, p.logits_stride = 9;
  EXPECT(contains(error_of([&] { cuda::sample(p, {}, nullptr); }), "logits_stride"), "stride");
  p.logits_stride = 10;
  EXPECT(contains(error_of([&] { cuda::sample(p, {}, nullptr); }), "null"), "null");
  p.num_rows = 0;
  EXPECT(error_of([&] { cuda::sample(p, {}, nullptr); }).empty(), "no rows is no error");
}

}  // namespace

int main() {
  test_greedy();
  test_filters();
  test_large_vocabulary();
  test_bad_rows();
  test_extremes();
  test_padding_and_layout();
  test_invariance();
  test_distribution();
  test_exponential();
  test_errors();
  return report("sampling");
}
