// SPDX-License-Identifier: Apache-2.0
// The stages between head and draw under the emulator, against pe/logits.h written out: one token at a time, sorted
// where the kernel selects, in double precision where it sums.
#include <algorithm>
#include <limits>

#include "harness.h"
#include "pe/logits.h"

namespace {

using namespace pe;
using namespace pe::test;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kStates = 3;

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Rows of logits, `gap` elements of 0xff bytes apart and `offset` past an aligned address.
struct Logits {
  int64_t num_rows, vocab, offset, stride;
  Buffer<float> buffer;

  Logits(int64_t rows, int64_t vocab_size, int64_t shift = 0, int64_t gap = 0)
      : num_rows(rows), vocab(vocab_size), offset(shift), stride(vocab_size + gap), buffer(shift + rows * stride) {}
  float* data() { return buffer.data() + offset; }
  float& at(int64_t row, int64_t token) { return buffer[offset + row * stride + token]; }
  std::vector<float> row(int64_t r) { return {&at(r, 0), &at(r, 0) + vocab}; }

  void fill(uint64_t seed, int steps = 64) {  // ties, masked tokens and zeros of both signs
    Random random(seed);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t v = 0; v < vocab; ++v) {
        const int64_t kind = random.below(16);
        const float x = static_cast<float>(random.below(steps) - steps / 2) / 4;
        at(r, v) = kind == 0 ? -kInf : kind == 1 ? -0.0f : x;
      }
    }
  }
  bool intact() {
    for (int64_t r = 0; r + 1 < num_rows; ++r) {
      if (!buffer.untouched(offset + r * stride + vocab, stride - vocab)) return false;
    }
    return buffer.guards_intact() && buffer.untouched(0, offset);
  }
  template <typename Params>
  void describe(Params* p) {
    p->logits = data(), p->num_rows = num_rows, p->vocab_size = vocab, p->logits_stride = stride;
  }
};

template <typename T>
void copy(Buffer<T>& to, const std::vector<T>& from) {
  for (size_t i = 0; i < from.size(); ++i) to[static_cast<int64_t>(i)] = from[i];
}

void fill_history(Buffer<uint16_t>& history, uint64_t seed) {
  Random random(seed);
  const uint16_t kinds[] = {0, 0, 0, 0, 0, 0, 1, 3, 0x8000, 0x8002, 0x7fff, 0xffff};
  for (int64_t i = 0; i < history.size(); ++i) history[i] = kinds[random.below(12)];
}

// ---- edits ----------------------------------------------------------------------------------------------------------

void test_penalties(int64_t vocab, int64_t offset, int64_t gap) {
  Logits logits(5, vocab, offset, gap);
  logits.fill(1);
  Buffer<uint16_t> history(kStates * vocab + 1);  // its rows start anywhere
  fill_history(history, 2);
  for (int64_t v = 0; v < vocab; ++v) history[1 + vocab + v] = 0;
  Buffer<int32_t> rows(5);
  Buffer<float> repetition(kStates), frequency(kStates), presence(kStates);
  copy(rows, {2, -1, 0, 1, 2}), copy(repetition, {1.5f, 2.0f, 0.7f});
  copy(frequency, {0.5f, 1.0f, -0.25f}), copy(presence, {0.0f, 1.0f, 0.3f});
  logits.at(4, vocab / 2) = kNaN;
  std::vector<std::vector<float>> before;
  for (int64_t b = 0; b < 5; ++b) before.push_back(logits.row(b));
  PenaltyParams p;
  logits.describe(&p);
  p.state_rows = rows.data(), p.history = history.data() + 1, p.history_stride = vocab;
  p.repetition = repetition.data(), p.frequency = frequency.data(), p.presence = presence.data();
  cuda::apply_penalties(p, nullptr);
  for (int64_t b = 0; b < 5; ++b) {
    for (int64_t v = 0; v < vocab; ++v) {
      const int64_t r = rows[b];
      const float x = before[static_cast<size_t>(b)][static_cast<size_t>(v)], got = logits.at(b, v);
      const uint16_t seen = r < 0 ? uint16_t{0} : history[1 + r * vocab + v];
      if (seen == 0 || std::isnan(x)) {
        EXPECT(std::isnan(x) ? std::isnan(got) : same_bits(got, x), "V %ld row %ld token %ld", vocab, b, v);
        continue;
      }
      const int count = seen & 0x7fff;
      const double scaled = x > 0 ? double{x} / repetition[r] : double{x} * repetition[r];
      const double expected = scaled - double{frequency[r]} * count - (count > 0 ? presence[r] : 0.0f);
      EXPECT(got == expected || std::abs(got - expected) <= 1e-6 * (1 + std::abs(expected) + std::abs(scaled)),
             "V %ld row %ld token %ld: %g, not %g", vocab, b, v, got, expected);
    }
  }
  EXPECT(logits.intact() && history.guards_intact(), "V %ld: guards", vocab);
}

void test_mask(int64_t vocab, int64_t offset, int64_t gap, int64_t num_words) {
  Logits logits(4, vocab, offset, gap);
  logits.fill(3);
  logits.at(0, 0) = kNaN;
  Buffer<int32_t> rows(4), masks(kStates * (num_words + 2));
  copy(rows, {1, -1, 0, 2});
  Random random(4);
  for (int64_t i = 0; i < masks.size(); ++i) {
    const int64_t kind = random.below(4);
    masks[i] = kind == 0 ? 0 : kind == 1 ? -1 : static_cast<int32_t>(random.next());
  }
  std::vector<std::vector<float>> before;
  for (int64_t b = 0; b < 4; ++b) before.push_back(logits.row(b));
  MaskParams p;
  logits.describe(&p);
  p.mask_rows = rows.data(), p.masks = masks.data(), p.num_words = num_words, p.mask_stride = num_words + 2;
  cuda::apply_mask(p, nullptr);
  for (int64_t b = 0; b < 4; ++b) {
    for (int64_t v = 0; v < vocab; ++v) {
      const auto in_mask = [&] {
        return v / 32 < num_words && (masks[rows[b] * (num_words + 2) + v / 32] >> v % 32 & 1) != 0;
      };
      const float x = before[static_cast<size_t>(b)][static_cast<size_t>(v)];
      EXPECT(same_bits(logits.at(b, v), rows[b] < 0 || in_mask() ? x : -kInf), "V %ld row %ld token %ld", vocab, b, v);
    }
  }
  EXPECT(logits.intact(), "V %ld: guards", vocab);
}

void test_bias() {
  Logits logits(3, 1000, 0, 5);
  logits.fill(5);
  std::vector<std::vector<float>> expected;
  for (int64_t b = 0; b < 3; ++b) expected.push_back(logits.row(b));
  Buffer<int32_t> entries(2 * 700);
  Buffer<float> values(700);
  for (int32_t i = 0; i < 700; ++i) {
    const int32_t row = i % 5 - 1, token = i * 3 % 1100;  // rows -1 and 3, tokens from 1000 on: ignored
    const float value = i % 4 == 3 ? -kInf : static_cast<float>(i) / 8;
    entries[2 * i] = row, entries[2 * i + 1] = i == 6 ? -1 : token, values[i] = value;
    if (row >= 0 && row < 3 && token < 1000 && i != 6)
      expected[static_cast<size_t>(row)][static_cast<size_t>(token)] += value;
  }
  BiasParams p;
  logits.describe(&p);
  p.entries = entries.data(), p.values = values.data(), p.num_entries = 700;
  cuda::apply_bias(p, nullptr);
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t v = 0; v < 1000; ++v) {
      EXPECT(same_bits(logits.at(b, v), expected[static_cast<size_t>(b)][static_cast<size_t>(v)]), "bias %ld %ld", b,
             v);
    }
  }
  EXPECT(logits.intact(), "guards");
}

// ---- history --------------------------------------------------------------------------------------------------------

void test_history(int64_t vocab, int64_t num_tokens, int64_t num_prompt) {
  Buffer<uint16_t> history(2 * vocab);
  Buffer<int32_t> tokens(num_tokens);
  Random random(static_cast<uint64_t>(vocab + num_tokens));
  std::vector<uint32_t> count(static_cast<size_t>(vocab)), prompt(count);
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t token = i % 2 ? vocab - 1 : random.below(vocab + 4) - 2;
    tokens[i] = static_cast<int32_t>(token);
    if (token >= 0 && token < vocab) (i < num_prompt ? prompt : count)[static_cast<size_t>(token)] += 1;
  }
  ResetHistoryParams p;
  p.history = history.data(), p.history_stride = p.vocab_size = vocab, p.row = 1;
  p.token_ids = tokens.data(), p.num_tokens = num_tokens, p.num_prompt = num_prompt;
  cuda::reset_history(p, nullptr);
  for (int64_t v = 0; v < vocab; ++v) {
    const size_t i = static_cast<size_t>(v);
    const uint32_t expected = std::min(count[i], 0x7fffu) | (prompt[i] > 0 ? 0x8000u : 0u);
    EXPECT(history[vocab + v] == expected, "V %ld token %ld: %x, not %x", vocab, v, history[vocab + v], expected);
  }
  EXPECT(history.untouched(0, vocab) && history.guards_intact(), "V %ld: row 0", vocab);
}

void test_count_tokens() {
  constexpr int64_t kVocab = 37, kRows = 300;
  Buffer<uint16_t> history(kRows * kVocab);
  Buffer<int32_t> rows(kRows), tokens(kRows);
  fill_history(history, 9);
  std::vector<uint16_t> expected(&history[0], &history[0] + history.size());
  for (int64_t i = 0; i < kRows; ++i) {
    const int64_t r = i % 7 == 0 ? -1 : kRows - 1 - i, token = i % 41 - 2;  // -2, -1 and 37, 38 are ignored
    rows[i] = static_cast<int32_t>(r), tokens[i] = static_cast<int32_t>(token);
    if (r < 0 || token < 0 || token >= kVocab) continue;
    uint16_t& h = expected[static_cast<size_t>(r * kVocab + token)];
    if ((h & 0x7fff) != 0x7fff) ++h;
  }
  CountTokensParams p;
  p.history = history.data(), p.history_stride = p.vocab_size = kVocab;
  p.state_rows = rows.data(), p.token_ids = tokens.data(), p.num_rows = kRows;
  cuda::count_tokens(p, nullptr);
  for (int64_t i = 0; i < history.size(); ++i) EXPECT(history[i] == expected[static_cast<size_t>(i)], "place %ld", i);
  EXPECT(history.guards_intact(), "guards");
}

// ---- log-probabilities ----------------------------------------------------------------------------------------------

struct Results {
  Buffer<float> target_logprobs;
  Buffer<int32_t> target_ranks, top_ids;
  Buffer<float> top_logprobs;
  Results(int64_t n, int32_t k) : target_logprobs(n), target_ranks(n), top_ids(n * k), top_logprobs(n * k) {}
};

void run_logprobs(Logits& logits, const std::vector<int32_t>& targets, int32_t k, Results* out) {
  Buffer<int32_t> target_ids(logits.num_rows);
  copy(target_ids, targets);
  LogprobsParams p;
  logits.describe(&p);
  p.target_logprobs = out->target_logprobs.data(), p.target_ranks = out->target_ranks.data();
  p.top_ids = out->top_ids.data(), p.top_logprobs = out->top_logprobs.data();
  p.target_ids = target_ids.data(), p.k = k;
  const size_t bytes = cuda::logprobs_workspace_bytes(p.num_rows, p.vocab_size, k);
  Buffer<unsigned char> workspace(static_cast<int64_t>(bytes));
  cuda::logprobs(p, {workspace.data(), bytes}, nullptr);
  EXPECT(workspace.guards_intact() && out->target_logprobs.guards_intact() && out->target_ranks.guards_intact() &&
             out->top_ids.guards_intact() && out->top_logprobs.guards_intact() && logits.intact(),
         "guards");
}

bool near(float got, double expected) {
  return got == expected || std::abs(got - expected) <= 3e-6 * (1 + std::abs(expected));
}

void check_row(const std::vector<float>& row, int32_t target, int32_t k, int64_t b, Results& got) {
  const int64_t vocab = static_cast<int64_t>(row.size());
  std::vector<int32_t> order(row.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) { return row[size_t(x)] > row[size_t(y)]; });
  const double largest = row[static_cast<size_t>(order[0])];
  double sum = 0;
  for (const float x : row) sum += std::exp(x - largest);
  const auto logprob = [&](int32_t id) { return row[static_cast<size_t>(id)] - largest - std::log(sum); };
  const float target_logit = row[static_cast<size_t>(target)];
  const auto rank = 1 + std::count_if(row.begin(), row.end(), [&](float x) { return x > target_logit; });
  EXPECT(near(got.target_logprobs[b], logprob(target)), "V %ld row %ld: %g, not %g", vocab, b, got.target_logprobs[b],
         logprob(target));
  EXPECT(got.target_ranks[b] == rank, "V %ld row %ld: rank %d, not %ld", vocab, b, got.target_ranks[b], rank);
  for (int32_t i = 0; i < k; ++i) {
    const int32_t id = i < vocab ? order[static_cast<size_t>(i)] : -1;
    EXPECT(got.top_ids[b * k + i] == id, "V %ld row %ld: place %d is %d, not %d", vocab, b, i, got.top_ids[b * k + i],
           id);
    EXPECT(near(got.top_logprobs[b * k + i], id < 0 ? -kInf : logprob(id)), "V %ld row %ld: place %d", vocab, b, i);
  }
}

void test_logprobs(int64_t vocab, int32_t k, int64_t offset, int64_t gap) {
  Logits logits(7, vocab, offset, gap);
  logits.fill(11, k == 20 ? 6 : 1 << 20);  // few values: thousands of ties
  for (int64_t v = 0; v < vocab; ++v) {
    logits.at(3, v) = static_cast<float>(v % 8000);  // a thread's logits are neighbours in order
    logits.at(4, v) = v == vocab / 2 ? 1.5f : v < vocab / 2 ? -kInf : 0.0f;
    logits.at(5, v) = 0.25f;
    logits.at(6, v) = -static_cast<float>(v % 1024 / 4);  // all of the largest are a few threads'
  }
  logits.at(0, 0) = 1;
  std::vector<int32_t> targets = {0,
                                  static_cast<int32_t>(vocab - 1),
                                  -1,
                                  static_cast<int32_t>(vocab / 2),
                                  static_cast<int32_t>(vocab / 2),
                                  static_cast<int32_t>(vocab - 1),
                                  0};
  Results got(7, k);
  run_logprobs(logits, targets, k, &got);
  for (int64_t b = 0; b < 7; ++b) {
    if (b != 2) check_row(logits.row(b), targets[static_cast<size_t>(b)], k, b, got);
  }
  EXPECT(got.target_logprobs.untouched(2, 1) && got.target_ranks.untouched(2, 1) && got.top_ids.untouched(2 * k, k) &&
             got.top_logprobs.untouched(2 * k, k),
         "V %ld: the padding row was written", vocab);
}

// Bad rows have NaN for log-probabilities; no order of threads changes a bit of any other row.
void test_bad_rows_and_orders() {
  constexpr int64_t kVocab = 9001;
  constexpr int32_t kTop = 5;
  Logits logits(5, kVocab);
  logits.fill(12);
  const std::vector<int32_t> targets = {7, 100, 9000, 8999, 7};
  Results without(5, kTop);
  run_logprobs(logits, targets, kTop, &without);
  logits.at(1, 9000) = kNaN, logits.at(3, 0) = kInf;
  for (int64_t v = 0; v < kVocab; ++v) logits.at(4, v) = -kInf;
  for_each_order([&] {
    Results with(5, kTop);
    run_logprobs(logits, targets, kTop, &with);
    for (const int64_t b : {1, 3, 4}) {
      EXPECT(std::isnan(with.target_logprobs[b]), "row %ld: %g", b, with.target_logprobs[b]);
      for (int64_t i = 0; i < kTop; ++i) EXPECT(std::isnan(with.top_logprobs[b * kTop + i]), "row %ld", b);
    }
    for (const int64_t b : {0, 2}) {
      EXPECT(same_bits(with.target_logprobs[b], without.target_logprobs[b]), "row %ld", b);
      for (int64_t i = b * kTop; i < (b + 1) * kTop; ++i) {
        EXPECT(with.top_ids[i] == without.top_ids[i] && same_bits(with.top_logprobs[i], without.top_logprobs[i]),
               "row %ld", b);
      }
    }
  });
}

// ---- errors ---------------------------------------------------------------------------------------------------------

void test_errors() {
  LogprobsParams p;
  const auto error = [&](Workspace workspace) { return error_of([&] { cuda::logprobs(p, workspace, nullptr); }); };
  EXPECT(contains(error({}), "vocab_size must be"), "vocab_size");
  p.vocab_size = p.logits_stride = 100, p.num_rows = 2, p.k = 65;
  EXPECT(contains(error({}), "k must be in [0, 64], got 65"), "k");
  p.k = 3;
  EXPECT(contains(error({}), "needs a workspace of"), "workspace");
  p.num_rows = 0;
  EXPECT(error({}).empty(), "no rows is no error");
  MaskParams mask;
  mask.num_rows = 2, mask.vocab_size = 10, mask.logits_stride = 9;
  EXPECT(contains(error_of([&] { cuda::apply_mask(mask, nullptr); }), "logits_stride must be at least"), "stride");
  ResetHistoryParams reset;
  reset.vocab_size = 10, reset.row = -1;
  EXPECT(contains(error_of([&] { cuda::reset_history(reset, nullptr); }), "row must not be negative"), "row");
}

}  // namespace

int main() {
  for (const int64_t vocab : {1, 31, 32, 33, 1000, 5003}) {
    for (const int64_t offset : {0, 1}) {
      test_penalties(vocab, offset, 8 - vocab % 8);
      test_mask(vocab, offset, offset == 0 ? 8 - vocab % 8 : 3, (vocab + 31) / 32);
    }
    test_penalties(vocab, 0, 0);
  }
  test_mask(5003, 0, 1, 40);
  for_each_order(test_bias);
  for_each_order([] { test_history(20000, 3000, 1000); });
  test_history(1, 5, 2);
  test_history(33, 2 * 0x7fff + 100, 0);
  test_history(8193, 40, 40);
  test_history(64, 0, 0);
  test_count_tokens();
  for (const int32_t k : {0, 1, 20, 64}) {
    for (const int64_t vocab : {1, 31, 33, 1000}) test_logprobs(vocab, k, 0, 8 - vocab % 4);
    test_logprobs(8192 + 4 * 1024 + 5, k, k % 2, 3);
  }
  test_logprobs(49152, 20, 0, 0);
  test_bad_rows_and_orders();
  test_errors();
  return report("logits");
}
