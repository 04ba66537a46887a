// SPDX-License-Identifier: Apache-2.0
// step_inputs, store_tokens, update_block_tables and gather_rows under the emulator against plain loops.
#include <algorithm>

#include "harness.h"
#include "pe/step_inputs.h"

namespace pe::test {
namespace {

using cuda::from_float;
using cuda::to_float;

constexpr int kMaxBlocks = 40;

struct Step {  // what the host would send
  int num_rows, block_size;
  std::vector<int32_t> rows, num_new, num_computed, prompt_offsets, prompt_ids, last_tokens, block_tables;
  int num_live = 0;
};

enum class Mix { kDecode, kPrefill, kMixed };

Step make_step(int num_seqs, int block_size, Mix mix, uint64_t seed) {
  Random random(seed);
  Step s;
  s.num_rows = num_seqs + 3;
  s.block_size = block_size;
  for (int i = 0; i < s.num_rows; ++i) {
    s.last_tokens.push_back(static_cast<int32_t>(random.below(50000)));
    for (int b = 0; b < kMaxBlocks + 1; ++b) s.block_tables.push_back(static_cast<int32_t>(random.below(1 << 30)));
  }
  std::vector<int32_t> free_rows(static_cast<size_t>(s.num_rows));
  for (int i = 0; i < s.num_rows; ++i) free_rows[static_cast<size_t>(i)] = i;
  for (int i = s.num_rows - 1; i > 0; --i)
    std::swap(free_rows[static_cast<size_t>(i)], free_rows[static_cast<size_t>(random.below(i + 1))]);
  for (int i = 0; i < num_seqs; ++i) {
    const bool padding = random.below(5) == 0;
    const bool decode = mix == Mix::kDecode || (mix == Mix::kMixed && random.below(2) == 0);
    const auto count = static_cast<int32_t>(decode ? 1 : 1 + random.below(2 * block_size + 3));
    s.rows.push_back(padding ? -1 : free_rows[static_cast<size_t>(i)]);
    s.num_new.push_back(padding && random.below(2) == 0 ? 0 : count);  // a padding row's other fields mean nothing
    s.num_computed.push_back(static_cast<int32_t>(random.below((kMaxBlocks - 3) * block_size)));
    s.prompt_offsets.push_back(decode ? -1 : static_cast<int32_t>(s.prompt_ids.size()));
    for (int j = 0; !decode && j < count; ++j) s.prompt_ids.push_back(static_cast<int32_t>(random.below(50000)));
    if (!padding) s.num_live += count;
  }
  s.prompt_ids.push_back(-7);  // so that an empty prompt list still has an address
  return s;
}

void run_step(Step s, int64_t extra) {
  const auto num_seqs = static_cast<int64_t>(s.rows.size());
  const int64_t num_tokens = s.num_live + extra;
  Buffer<int32_t> query_start(num_seqs + 1), seq_lens(num_seqs), ids(num_tokens), positions(num_tokens), last(num_seqs);
  Buffer<int64_t> slots(num_tokens);
  StepInputsParams p;
  p.last_tokens = s.last_tokens.data();
  p.block_tables = s.block_tables.data();
  p.block_table_stride = kMaxBlocks + 1;
  p.block_size = s.block_size;
  p.rows = s.rows.data();
  p.num_new_tokens = s.num_new.data();
  p.num_computed = s.num_computed.data();
  p.prompt_offsets = s.prompt_offsets.data();
  p.prompt_ids = s.prompt_ids.data();
  p.num_seqs = num_seqs;
  p.query_start = query_start.data();
  p.seq_lens = seq_lens.data();
  p.input_ids = ids.data();
  p.positions = positions.data();
  p.slot_mapping = slots.data();
  p.last_indices = last.data();
  p.num_tokens = num_tokens;
  cuda::step_inputs(p, nullptr);

  int64_t t = 0;
  for (int64_t i = 0; i < num_seqs; ++i) {
    const auto u = static_cast<size_t>(i);
    const int32_t row = s.rows[u], count = row < 0 ? 0 : s.num_new[u];
    EXPECT(query_start[i] == t, "sequence %ld: %d not %ld", i, query_start[i], t);
    EXPECT(seq_lens[i] == (row < 0 ? 0 : s.num_computed[u] + count), "sequence %ld: %d", i, seq_lens[i]);
    EXPECT(last[i] == (count == 0 ? 0 : t + count - 1), "sequence %ld: %d", i, last[i]);
    for (int j = 0; j < count; ++j, ++t) {
      const int offset = s.prompt_offsets[u], position = s.num_computed[u] + j;
      const int32_t id =
          offset < 0 ? s.last_tokens[static_cast<size_t>(row)] : s.prompt_ids[static_cast<size_t>(offset + j)];
      const int64_t block = s.block_tables[static_cast<size_t>(row * (kMaxBlocks + 1) + position / s.block_size)];
      EXPECT(ids[t] == id, "token %ld: id %d not %d", t, ids[t], id);
      EXPECT(positions[t] == position, "token %ld: position %d not %d", t, positions[t], position);
      EXPECT(slots[t] == block * s.block_size + position % s.block_size, "token %ld: slot %ld", t, slots[t]);
    }
  }
  EXPECT(query_start[num_seqs] == t);
  for (; t < num_tokens; ++t) EXPECT(ids[t] == 0 && positions[t] == 0 && slots[t] == -1, "padding token %ld", t);
  EXPECT(query_start.guards_intact() && seq_lens.guards_intact() && ids.guards_intact() && positions.guards_intact() &&
         slots.guards_intact() && last.guards_intact());
}

void test_step_inputs() {
  uint64_t seed = 1;
  for (const Mix mix : {Mix::kDecode, Mix::kPrefill, Mix::kMixed}) {
    for (const int num_seqs : {0, 1, 2, 31, 257, 1100}) {
      if (mix == Mix::kPrefill && num_seqs > 300) continue;
      const Step step = make_step(num_seqs, num_seqs % 2 == 0 ? 16 : 64, mix, ++seed);
      for_each_order([&] { run_step(step, static_cast<int64_t>(seed % 3) * 700); });
    }
  }
  StepInputsParams p;
  p.num_seqs = 40000;
  EXPECT(contains(error_of([&] { cuda::step_inputs(p, nullptr); }),
                  "step_inputs: num_seqs must be 0 .. 32768, got 40000"));
}

void test_store_tokens() {
  for_each_order([] {
    constexpr int kNumRows = 400;
    Buffer<int32_t> last(kNumRows);
    std::vector<int32_t> rows, tokens, expected(kNumRows, 7);
    std::fill_n(last.data(), kNumRows, 7);
    for (int i = 0; i < 300; ++i) {
      rows.push_back(i % 7 == 3 ? -1 : (i * 37) % kNumRows);
      tokens.push_back(i % 11 == 5 ? -1 : 1000 + i);
      if (rows.back() >= 0 && tokens.back() >= 0) expected[static_cast<size_t>(rows.back())] = tokens.back();
    }
    cuda::store_tokens({last.data(), rows.data(), tokens.data(), 300}, nullptr);
    for (int i = 0; i < kNumRows; ++i) EXPECT(last[i] == expected[static_cast<size_t>(i)], "row %d: %d", i, last[i]);
    EXPECT(last.guards_intact());
    cuda::store_tokens({last.data(), rows.data(), tokens.data(), 0}, nullptr);
  });
}

void test_update_block_tables() {
  for_each_order([] {
    constexpr int kNumRows = 30, kStride = 17;
    Buffer<int32_t> tables(kNumRows * kStride);
    std::vector<int32_t> entries, expected(kNumRows * kStride, -1);
    for (int i = 0; i < 290; ++i) {
      const int row = i % 9 == 4 ? -1 : i % kNumRows, index = i / kNumRows;
      entries.insert(entries.end(), {row, index, 500 + i});
      if (row >= 0) expected[static_cast<size_t>(row * kStride + index)] = 500 + i;
    }
    cuda::update_block_tables({tables.data(), kStride, entries.data(), 290}, nullptr);
    for (int i = 0; i < kNumRows * kStride; ++i) EXPECT(tables[i] == expected[static_cast<size_t>(i)], "entry %d", i);
    EXPECT(tables.guards_intact());
  });
}

template <typename T>
void run_gather(int64_t cols) {
  constexpr int64_t kRows = 9, kPadding = 8;
  const std::vector<int32_t> indices = {8, 0, 3, 3, 7};
  const auto n = static_cast<int64_t>(indices.size());
  Buffer<T> x(kRows * (cols + kPadding)), out(n * (cols + 2 * kPadding));
  Random random(2);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = from_float<T>(random.uniform());
  cuda::gather_rows(
      {out.data(), x.data(), indices.data(), n, cols, cols + 2 * kPadding, cols + kPadding, dtype_of<T>()}, nullptr);
  for (int64_t r = 0; r < n; ++r) {
    const T* from = x.data() + indices[static_cast<size_t>(r)] * (cols + kPadding);
    EXPECT(std::memcmp(out.data() + r * (cols + 2 * kPadding), from, static_cast<size_t>(cols) * sizeof(T)) == 0,
           "row %ld", r);
    EXPECT(out.untouched(r * (cols + 2 * kPadding) + cols, 2 * kPadding));
  }
  EXPECT(out.guards_intact());
}

void test_gather_rows() {
  for_each_dtype([](auto t) {
    for_each_order([] {
      run_gather<decltype(t)>(8);
      run_gather<decltype(t)>(4096);
    });
  });
  EXPECT(contains(error_of([] { cuda::gather_rows({nullptr, nullptr, nullptr, 1, 6, 8, 8, DType::kF32}, nullptr); }),
                  "gather_rows: a row"));
}

}  // namespace
}  // namespace pe::test

int main() {
  pe::test::test_step_inputs();
  pe::test::test_store_tokens();
  pe::test::test_update_block_tables();
  pe::test::test_gather_rows();
  return pe::test::report("step_inputs");
}
