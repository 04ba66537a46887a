// SPDX-License-Identifier: Apache-2.0
// Paged attention under the emulator: against a double loop in double precision, and against itself bit for bit.
//
// A sequence's q, k, v are functions of (sequence id, position), so the same sequence can be computed alone, in a
// crowd, whole, in pieces, and token by token, on any number of CTAs. Every slot of the cache that no query may see is
// NaN, every entry of a block table that nobody may read points far outside the pool, and all memory that the op gets
// starts as NaN.
//
// The plan by itself: test_attention_plan.cpp.
//
// kernels: attention
#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "attention_geometry.h"
#include "cuda/common/fp8.cuh"
#include "harness.h"

namespace pe::cuda {
namespace {

using attention::Geometry;
using attention::Plan;
using test::Buffer;

struct Segment {
  int id, end;
};
// Keys and values up to each segment's end are those of the sequence `id` that it names, in the same physical blocks
// where they fill them; behind the last they are the sequence's own.
struct Seq {
  int id, len, num_queries;
  std::vector<Segment> prefix = {};
};
int key_id(const Seq& s, int position) {
  for (const Segment& segment : s.prefix) {
    if (position < segment.end) return segment.id;
  }
  return s.id;
}

struct Shape {
  int num_heads = 4, num_kv_heads = 1, dim = 64, block_size = 16, window = 0;
  bool tokens_outermost = false;  // cache as [block, token, head, dim] instead of [block, head, token, dim]
};

struct Batch {
  std::vector<Seq> seqs;
  int pad_seqs = 0, pad_tokens = 0;
};

constexpr float kScale = 0.3f;
// Of a cache in e4m3: what its elements stand for in each kv head.
constexpr float kKeyScales[] = {1.25f, 0.8f}, kValueScales[] = {0.6f, 1.7f};

float element(int what, int id, int position, int head, int d) {
  test::Random random((((static_cast<uint64_t>(what) * 1009 + id) * 100003 + position) * 131 + head) * 521 + d);
  return 2 * random.uniform();
}

template <typename Stored>
Stored stored(float x) {
  if constexpr (std::is_same_v<Stored, fp8>) {
    return fp8{static_cast<uint8_t>(narrow_fp8(x))};
  } else {
    return from_float<Stored>(x);
  }
}
template <typename Stored>
std::vector<float> head_row(int what, int id, int position, int head, int dim) {  // as Stored holds it
  std::vector<float> row(dim);
  for (int d = 0; d < dim; ++d) row[d] = to_float(stored<Stored>(element(what, id, position, head, d)));
  return row;
}

// One step's memory, built anew for each call. The cache holds Stored.
template <typename T, typename Stored = T>
class World {
 public:
  World(const Shape& shape, const Batch& batch) : shape_(shape), batch_(batch) {
    for (const Seq& s : batch.seqs) num_tokens_ += s.num_queries;
    int64_t num_blocks = 3;
    for (const Seq& s : batch.seqs) num_blocks += div_ceil(s.len, shape.block_size);
    num_blocks_ = num_blocks;
    max_blocks_ = 1;
    for (const Seq& s : batch.seqs) max_blocks_ = std::max<int64_t>(max_blocks_, div_ceil(s.len, shape.block_size));
    const int64_t pool = num_blocks * shape.num_kv_heads * shape.block_size * shape.dim;
    const int64_t all_tokens = num_tokens_ + batch.pad_tokens, all_seqs = num_seqs();
    q_ = std::make_unique<Buffer<T>>(all_tokens * row_elements());
    out_ = std::make_unique<Buffer<T>>(all_tokens * row_elements());
    k_ = std::make_unique<Buffer<Stored>>(pool);
    v_ = std::make_unique<Buffer<Stored>>(pool);
    tables_ = std::make_unique<Buffer<int32_t>>(all_seqs * max_blocks_);
    rows_ = std::make_unique<Buffer<int32_t>>(all_seqs);
    query_start_ = std::make_unique<Buffer<int32_t>>(all_seqs + 1);
    seq_lens_ = std::make_unique<Buffer<int32_t>>(all_seqs);
    fill(num_blocks);
  }

  PagedAttentionParams params() {
    PagedAttentionParams p;
    p.out = out_->data();
    p.q = q_->data();
    p.q_head_stride = p.out_head_stride = shape_.dim;
    p.q_token_stride = p.out_token_stride = row_elements();
    p.kv.k = k_->data();
    p.kv.v = v_->data();
    p.kv.block_stride = int64_t{shape_.num_kv_heads} * shape_.block_size * shape_.dim;
    p.kv.head_stride = shape_.tokens_outermost ? shape_.dim : int64_t{shape_.block_size} * shape_.dim;
    p.kv.token_stride = shape_.tokens_outermost ? int64_t{shape_.num_kv_heads} * shape_.dim : shape_.dim;
    p.kv.num_blocks = static_cast<int32_t>(num_blocks_);
    p.kv.block_size = shape_.block_size;
    p.kv.num_kv_heads = shape_.num_kv_heads;
    p.kv.head_dim = shape_.dim;
    p.kv.dtype = p.dtype = test::dtype_of<T>();
    if constexpr (std::is_same_v<Stored, fp8>) {
      p.kv.dtype = DType::kF8E4M3;
      p.kv.k_scale = kKeyScales;
      p.kv.v_scale = kValueScales;
    }
    p.block_tables = tables_->data();
    p.block_table_stride = max_blocks_;
    p.table_rows = rows_->data();
    p.query_start = query_start_->data();
    p.seq_lens = seq_lens_->data();
    p.num_seqs = num_seqs();
    p.num_tokens = num_tokens_ + batch_.pad_tokens;
    p.num_heads = shape_.num_heads;
    p.max_seq_len = 1;
    for (const Seq& s : batch_.seqs) p.max_seq_len = std::max(p.max_seq_len, s.len);
    p.scale = kScale;
    p.window = shape_.window;
    return p;
  }

  // Plans, runs twice with the same plan, and checks what must not change.
  std::vector<T> run(const Geometry& geometry) {
    PagedAttentionParams p = params();
    Buffer<char> plan(static_cast<int64_t>(attention::plan_bytes(p, geometry)));
    Buffer<char> work(static_cast<int64_t>(attention_workspace_bytes(p)));
    const Workspace plan_space{plan.data(), static_cast<size_t>(plan.size())};
    const Workspace work_space{work.data(), static_cast<size_t>(work.size())};
    attention::plan(p, geometry, plan_space, nullptr);
    attention::run(p, geometry, plan_space, work_space, nullptr);
    const std::vector<unsigned char> first = out_->bytes();
    if (runs_twice) {
      p.turn = 1;
      attention::run(p, geometry, plan_space, work_space, nullptr);
      EXPECT(first == out_->bytes(), "a plan's second use gives other bits");
    }
    expect_rested(p, geometry, plan.data());
    look_at_sharing(p, geometry, plan.data());
    EXPECT(plan.guards_intact() && work.guards_intact() && out_->guards_intact(), "wrote past its memory");
    EXPECT(out_->untouched(num_tokens_ * row_elements(), batch_.pad_tokens * row_elements()), "wrote to padding");
    return {out_->data(), out_->data() + num_tokens_ * row_elements()};
  }

  int64_t row_elements() const { return int64_t{shape_.num_heads} * shape_.dim; }
  bool runs_twice = false;
  // of the last run: rows that were gathered from sequences, the items that computed them, the most states of a group
  int num_shared_rows = 0, num_shared_items = 0, num_shared_states = 0;

 private:
  int64_t num_seqs() const { return static_cast<int64_t>(batch_.seqs.size()) + batch_.pad_seqs; }

  // The next launch must find no ticket taken and no piece done.
  void expect_rested(const PagedAttentionParams& p, const Geometry& geometry, void* memory) {
    Plan plan;
    attention::lay_out(attention::plan_bounds(p, geometry), memory, &plan);
    const attention::Header& h = *plan.header;
    const attention::Tickets& next = h.tickets[h.turn];
    bool rested = next.next_cta == 0 && next.next_warp == 0 && next.next_merge == 0;
    for (int i = 0; i < h.num_splits * shape_.num_kv_heads; ++i) rested = rested && plan.arrivals[h.turn][i] == 0;
    EXPECT(rested, "a run leaves tickets or arrivals behind");
  }

  void look_at_sharing(const PagedAttentionParams& p, const Geometry& geometry, void* memory) {
    Plan plan;
    attention::lay_out(attention::plan_bounds(p, geometry), memory, &plan);
    num_shared_rows = plan.header->num_shared_rows;
    num_shared_items = num_shared_states = 0;
    for (int i = 0; i < plan.header->num_cta_items; ++i) num_shared_items += plan.cta_items[i].shared >= 0;
    for (int i = 0; i < num_shared_rows; ++i)
      num_shared_states = std::max(num_shared_states, plan.groups[plan.shared_rows[i].group].num_states);
  }

  void fill(int64_t num_blocks) {
    std::vector<int> free_blocks;
    for (int i = 0; i < num_blocks; ++i) free_blocks.push_back(i);
    test::Random random(static_cast<uint64_t>(batch_.seqs.size()) + 17);
    for (size_t i = free_blocks.size() - 1; i > 0; --i)
      std::swap(free_blocks[i], free_blocks[random.below(static_cast<int64_t>(i) + 1)]);
    for (int64_t i = 0; i < tables_->size(); ++i) (*tables_)[i] = 0x7fffffff;
    (*query_start_)[0] = 0;
    for (int64_t s = 0; s < num_seqs(); ++s) {
      const bool lives = s < static_cast<int64_t>(batch_.seqs.size());
      (*rows_)[s] = static_cast<int32_t>(num_seqs() - 1 - s);
      (*query_start_)[s + 1] = (*query_start_)[s] + (lives ? batch_.seqs[s].num_queries : 0);
      (*seq_lens_)[s] = lives ? batch_.seqs[s].len : 0;
      if (lives) fill_sequence(batch_.seqs[s], s, free_blocks);
    }
  }

  void fill_sequence(const Seq& s, int64_t index, std::vector<int>& free_blocks) {
    const PagedAttentionParams p = params();
    const int first_query = s.len - s.num_queries;
    const int first_key = shape_.window == 0 ? 0 : std::max(0, first_query - shape_.window + 1);
    for (int position = first_key; position < s.len; ++position) {
      int32_t& block = (*tables_)[(*rows_)[index] * max_blocks_ + position / shape_.block_size];
      if (block == 0x7fffffff) {
        const int number = position / shape_.block_size, begin = number * shape_.block_size;
        const int owner = key_id(s, begin), last_owner = key_id(s, begin + shape_.block_size - 1);
        int32_t fresh = -1;
        int32_t& known = owner == last_owner && owner != s.id ? shared_blocks_[{owner, number}] : fresh;
        if (known <= 0) {
          known = free_blocks.back() + 1;  // 0: not yet known
          free_blocks.pop_back();
        }
        block = known - 1;
      }
      for (int head = 0; head < shape_.num_kv_heads; ++head) {
        const int64_t at =
            block * p.kv.block_stride + head * p.kv.head_stride + position % shape_.block_size * p.kv.token_stride;
        for (int d = 0; d < shape_.dim; ++d) {
          (*k_)[at + d] = stored<Stored>(element(1, key_id(s, position), position, head, d));
          (*v_)[at + d] = stored<Stored>(element(2, key_id(s, position), position, head, d));
        }
      }
    }
    for (int i = 0; i < s.num_queries; ++i) {
      for (int head = 0; head < shape_.num_heads; ++head) {
        for (int d = 0; d < shape_.dim; ++d) {
          (*q_)[((*query_start_)[index] + i) * row_elements() + head * shape_.dim + d] =
              from_float<T>(element(0, s.id, first_query + i, head, d));
        }
      }
    }
  }

  Shape shape_;
  Batch batch_;
  int64_t num_tokens_ = 0, max_blocks_ = 0, num_blocks_ = 0;
  std::unique_ptr<Buffer<T>> q_, out_;
  std::unique_ptr<Buffer<Stored>> k_, v_;
  std::unique_ptr<Buffer<int32_t>> tables_, rows_, query_start_, seq_lens_;
  std::map<std::pair<int, int>, int32_t> shared_blocks_;  // (sequence, number) -> block + 1
};

// ---- against double precision -------------------------------------------------------------------------------------

// The error that rounding the weights to T allows (each by half an ulp, f16's subnormals by an absolute step), the
// rounding of the result, and fp32's own sums.
template <typename T, typename Stored>
void check_row(const Shape& shape, const Seq& s, int position, int head, const T* got) {
  const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const int first = shape.window == 0 ? 0 : std::max(0, position - shape.window + 1);
  const bool scaled = std::is_same_v<Stored, fp8>;
  const double k_scale = scaled ? kKeyScales[kv_head] : 1, v_scale = scaled ? kValueScales[kv_head] : 1;
  const std::vector<float> q = head_row<T>(0, s.id, position, head, shape.dim);
  std::vector<double> scores, acc(shape.dim, 0.0), size(shape.dim, 0.0);
  for (int key = first; key <= position; ++key) {
    const std::vector<float> k = head_row<Stored>(1, key_id(s, key), key, kv_head, shape.dim);
    double dot = 0;
    for (int d = 0; d < shape.dim; ++d) dot += double{q[d]} * k[d];
    scores.push_back(dot * kScale * k_scale);
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (int key = first; key <= position; ++key) {
    const double p = std::exp(scores[key - first] - most);
    const std::vector<float> v = head_row<Stored>(2, key_id(s, key), key, kv_head, shape.dim);
    sum += p;
    for (int d = 0; d < shape.dim; ++d) {
      acc[d] += p * v[d] * v_scale;
      size[d] += p * std::abs(v[d]) * v_scale;
    }
  }
  const double half_ulp = test::ulp<T>() / 2;
  double worst = 0;
  for (int d = 0; d < shape.dim; ++d) {
    const double expected = acc[d] / sum;
    const double allowed =
        half_ulp * (size[d] / sum + std::abs(expected)) + 2e-5 + 6e-8 * static_cast<double>(scores.size());
    const double error = std::abs(to_float(got[d]) - expected) / allowed;
    worst = error <= worst ? worst : error;
    if (!(error <= 1)) worst = std::max(worst, std::isnan(error) ? 1e9 : error);
  }
  EXPECT(worst <= 1, "seq len %d queries %d position %d head %d: error is %g of the allowed", s.len, s.num_queries,
         position, head, worst);
}

template <typename T, typename Stored = T>
void check_batch(const Shape& shape, const Batch& batch, const Geometry& geometry) {
  World<T, Stored> world(shape, batch);
  world.runs_twice = true;
  const std::vector<T> out = world.run(geometry);
  int64_t token = 0;
  for (const Seq& s : batch.seqs) {
    for (int i = 0; i < s.num_queries; ++i, ++token) {
      // All rows of short pieces; of long ones the ends and a few between.
      if (s.num_queries > 12 && i > 2 && i < s.num_queries - 3 && i % 11 != 0) continue;
      for (int head = 0; head < shape.num_heads; ++head) {
        const T* got = &out[token * world.row_elements() + head * shape.dim];
        check_row<T, Stored>(shape, s, s.len - s.num_queries + i, head, got);
      }
    }
  }
}

void test_against_reference() {
  const Batch decode{{{1, 1, 1}, {2, 15, 1}, {3, 16, 1}, {4, 65, 1}, {5, 257, 1}, {6, 700, 1}}, 2, 2};
  const Batch mixed{{{1, 40, 1}, {2, 0, 0}, {3, 90, 90}, {4, 300, 3}, {5, 290, 45}, {6, 513, 1}}, 1, 3};
  for (const int group : {1, 3, 4, 8}) {
    const Shape shape{2 * group, 2, 64, 16, 0, false};
    check_batch<bf16>(shape, decode, ctas(1, deep_slots(64)));
    check_batch<bf16>(shape, decode, decoding_by_cta(2));
    check_batch<bf16>(shape, decode, by_boxes(2));
  }
  check_batch<bf16>({8, 2, 64, 64, 0, true}, mixed, ctas(2));
  check_batch<bf16>({3, 1, 128, 16, 0, false}, mixed, ctas(1, deep_slots(128)));
  check_batch<f16>({4, 1, 64, 32, 0, true}, mixed, ctas(1));
  check_batch<f16>({8, 1, 128, 256, 0, false}, decode, ctas(4));
  check_batch<bf16>({4, 2, 64, 16, 50, false}, mixed, ctas(2));
  check_batch<bf16>({4, 1, 64, 16, 300, false}, {{{1, 900, 1}, {2, 620, 40}, {3, 270, 4}}}, ctas(3, deep_slots(64)));
  check_batch<bf16>({40, 1, 64, 16, 0, false}, {{{1, 300, 1}, {2, 20, 1}}}, ctas(1));  // a CTA for one token
  check_batch<f16>({8, 1, 128, 256, 0, false}, decode, decoding_by_cta(3));
  check_batch<f16>({8, 1, 128, 256, 0, false}, decode, by_boxes(1));
  check_batch<bf16>({8, 2, 64, 64, 0, true}, mixed, by_boxes(2));
  check_batch<bf16>({4, 1, 128, 16, 300, false}, {{{1, 900, 1}, {2, 620, 4}, {3, 270, 3}}}, by_boxes(2));
  check_batch<bf16>({24, 2, 64, 16, 50, false}, mixed, by_boxes(1));
  check_batch<bf16>({8, 1, 96, 16, 300, false}, {{{1, 900, 1}, {2, 620, 4}, {3, 270, 3}}}, decoding_by_cta(2));
  for (const int dim : {80, 96, 256}) {
    const Shape shape{4, 1, dim, 16, 0, false};
    check_batch<bf16>(shape, {{{1, 70, 1}, {2, 60, 20}, {3, 330, 1}}}, ctas(2, deep_slots(dim)));
  }
}

void test_fp8_against_reference() {
  const Batch decode{{{1, 1, 1}, {2, 15, 1}, {3, 16, 1}, {4, 65, 1}, {5, 257, 1}, {6, 700, 1}}, 2, 2};
  const Batch mixed{{{1, 40, 1}, {2, 0, 0}, {3, 90, 90}, {4, 300, 3}, {5, 290, 45}, {6, 513, 1}}, 1, 3};
  for (const int group : {1, 3, 4, 8}) {
    check_batch<bf16, fp8>({2 * group, 2, 64, 16, 0, false}, decode, ctas(1));
    check_batch<bf16, fp8>({2 * group, 2, 64, 16, 0, false}, decode, by_boxes(2));
    check_batch<bf16, fp8>({2 * group, 2, 128, 16, 0, false}, decode, by_boxes(1));
  }
  check_batch<bf16, fp8>({8, 2, 64, 64, 0, true}, mixed, ctas(2, deep_slots(32)));
  check_batch<bf16, fp8>({3, 1, 128, 16, 0, false}, mixed, ctas(1, deep_slots(64)));
  check_batch<f16, fp8>({4, 1, 64, 32, 0, true}, mixed, ctas(1));
  check_batch<f16, fp8>({8, 1, 128, 256, 0, false}, decode, ctas(4));  // split: partial results in the right columns
  check_batch<bf16, fp8>({4, 2, 128, 16, 50, false}, mixed, ctas(2));
  check_batch<bf16, fp8>({4, 1, 64, 16, 300, false}, {{{1, 900, 1}, {2, 620, 40}, {3, 270, 4}}}, ctas(3));
  for (const int dim : {64, 128}) {
    check_batch<f16, fp8>({8, 1, dim, 256, 0, false}, decode, by_boxes(4));
    check_batch<bf16, fp8>({8, 2, dim, 64, 0, true}, mixed, by_boxes(2));
    check_batch<f16, fp8>({3, 1, dim, 32, 0, false}, mixed, by_boxes(1));
    check_batch<bf16, fp8>({4, 1, dim, 16, 300, true}, {{{1, 900, 1}, {2, 620, 4}, {3, 270, 3}}}, by_boxes(2));
    check_batch<bf16, fp8>({24, 2, dim, 16, 50, false}, mixed, by_boxes(1));
  }
}

// ---- bit for bit --------------------------------------------------------------------------------------------------

using Rows = std::map<int, std::vector<uint16_t>>;  // position -> bits of all heads

template <typename T, typename Stored = T>
Rows rows_of(const Shape& shape, const Batch& batch, int id, const Geometry& geometry) {
  World<T, Stored> world(shape, batch);
  const std::vector<T> out = world.run(geometry);
  const int64_t elements = world.row_elements();
  Rows rows;
  int64_t token = 0;
  for (const Seq& s : batch.seqs) {
    for (int i = 0; i < s.num_queries; ++i, ++token) {
      if (s.id != id) continue;
      std::vector<uint16_t> bits(elements);
      std::memcpy(bits.data(), &out[token * elements], elements * sizeof(T));
      rows[s.len - s.num_queries + i] = bits;
    }
  }
  return rows;
}

void expect_same(const Rows& part, const Rows& whole, const char* what) {
  EXPECT(!part.empty(), "%s: nothing computed", what);
  for (const auto& [position, bits] : part)
    EXPECT(bits == whole.at(position), "%s: position %d differs", what, position);
}

bool takes_boxes(const Shape& shape) { return shape.dim == 64 || shape.dim == 128; }

template <typename T, typename Stored = T>
void test_same_bits(const Shape& shape, int len) {
  const int id = 7, words = static_cast<int>(shape.dim * sizeof(Stored) / 2);
  constexpr bool kByCta = std::is_same_v<T, Stored>;  // with a cache in e4m3 no CTA decodes
  const Rows whole = rows_of<T, Stored>(shape, {{{id, len, len}}}, id, ctas(1));
  EXPECT(static_cast<int>(whole.size()) == len, "all rows");
  // whole, on more CTAs (split tiles) and in a crowd
  expect_same(rows_of<T, Stored>(shape, {{{id, len, len}}}, id, ctas(9, deep_slots(words))), whole, "9 CTAs");
  expect_same(rows_of<T, Stored>(shape, {{{1, 5, 5}, {2, 77, 1}, {id, len, len}, {3, 130, 2}}, 1, 1}, id, ctas(3)),
              whole, "crowd");
  if (takes_boxes(shape)) {  // beside pairs: one item after the other, items of one CTA each, in a crowd
    const Batch many{{{1, 5, 5}, {2, 77, 1}, {id, len, len}, {3, 130, 61}, {4, 40, 40}}, 1, 1};
    expect_same(rows_of<T, Stored>(shape, {{{id, len, len}}}, id, by_boxes(1)), whole, "boxes");
    expect_same(rows_of<T, Stored>(shape, {{{id, len, len}}}, id, by_boxes(9)), whole, "boxes, 9 CTAs");
    expect_same(rows_of<T, Stored>(shape, many, id, by_boxes(1)), whole, "boxes in a crowd");
    expect_same(rows_of<T, Stored>(shape, many, id, by_boxes(3)), whole, "boxes in a crowd, 3 CTAs");
  }
  // cut at odd places
  int begin = 0;
  for (const int cut : {1, 14, 47, 96, 97, 200, 255, 258, 290, len}) {
    if (cut <= begin || cut > len) continue;
    expect_same(rows_of<T, Stored>(shape, {{{1, 33, 1}, {id, cut, cut - begin}}}, id,
                                   begin % 3 == 0 ? ctas(1) : ctas(12, deep_slots(words))),
                whole, "cut");
    begin = cut;
  }
  // token by token: alone on one CTA (nothing split), alone on many (every chunk apart), in a crowd
  for (int position = 0; position < len; position += position < 70 || position > len - 3 ? 9 : 41) {
    const Seq one{id, position + 1, 1};
    expect_same(rows_of<T, Stored>(shape, {{one}}, id, ctas(1)), whole, "decode, 1 CTA");
    expect_same(rows_of<T, Stored>(shape, {{one}}, id, ctas(40, deep_slots(words))), whole, "decode, 40 CTAs");
    if (takes_boxes(shape)) {
      expect_same(rows_of<T, Stored>(shape, {{one}}, id, by_boxes(40)), whole, "decode by boxes, 40");
      expect_same(rows_of<T, Stored>(shape, {{one}}, id, by_boxes(1)), whole, "decode by boxes, 1");
    }
    if (!kByCta) continue;
    expect_same(rows_of<T, Stored>(shape, {{one}}, id, decoding_by_cta(40)), whole, "decode by CTA, 40");
    expect_same(rows_of<T, Stored>(shape, {{one}}, id, decoding_by_cta(1)), whole, "decode by CTA, 1");
  }
  Batch crowd{{{1, 100, 1}, {2, 300, 2}, {id, len, 1}, {3, 60, 60}, {4, 1, 1}}, 1, 1};
  expect_same(rows_of<T, Stored>(shape, crowd, id, ctas(2)), whole, "decode in a crowd");
  for (const int num_queries : {1, 2}) {
    const Batch few{{{1, 100, 1}, {id, len, num_queries}, {4, 1, 1}}, 1, 1};
    if (kByCta) expect_same(rows_of<T, Stored>(shape, few, id, decoding_by_cta(3)), whole, "by CTA in a crowd");
    if (takes_boxes(shape)) expect_same(rows_of<T, Stored>(shape, few, id, by_boxes(1)), whole, "by boxes in a crowd");
  }
  for (const int num_queries : {2, 3, 5}) {  // 8 to 40 rows: half a warp, a warp, a CTA
    crowd.seqs[2].num_queries = num_queries;
    expect_same(rows_of<T, Stored>(shape, crowd, id, ctas(2 * num_queries)), whole, "a few tokens in a crowd");
  }
}

// A NaN in one sequence stays there, and any order of threads gives the same bits.
void test_orders_and_geometry() {
  const Shape shape{4, 1, 64, 16, 0, false};
  const Batch batch{{{1, 600, 1}, {2, 300, 40}, {3, 20, 2}}};
  const Rows expected = rows_of<bf16>(shape, batch, 2, ctas(1)),
             expected_fp8 = rows_of<bf16, fp8>(shape, batch, 2, ctas(1));
  const Rows expected_decode = rows_of<bf16>(shape, batch, 1, ctas(1));
  test::for_each_order([&] {
    expect_same(rows_of<bf16>(shape, batch, 2, ctas(6, deep_slots(64))), expected, "order");
    expect_same(rows_of<bf16, fp8>(shape, batch, 2, ctas(6, deep_slots(32))), expected_fp8, "order, e4m3");
    expect_same(rows_of<bf16, fp8>(shape, batch, 2, by_boxes(2)), expected_fp8, "order, e4m3 boxes");
    Geometry spread = ctas(1);
    spread.spread = true;
    expect_same(rows_of<bf16>(shape, {{{1, 600, 1}}}, 1, spread), expected_decode, "spread");
    spread.by_boxes = true;
    expect_same(rows_of<bf16>(shape, {{{1, 600, 1}}}, 1, spread), expected_decode, "spread boxes");
  });
}

// ---- keys that sequences share ------------------------------------------------------------------------------------

// With sharing and without: the same bits. Some rows are checked against double precision.
template <typename T, typename Stored = T>
Shared check_sharing(const Shape& shape, const Batch& batch, const Geometry& geometry) {
  World<T, Stored> apart(shape, batch), together(shape, batch);
  together.runs_twice = true;
  const std::vector<T> expected = apart.run(geometry), out = together.run(sharing(geometry));
  EXPECT(apart.num_shared_rows == 0, "nothing is shared where it is switched off");
  int64_t token = 0;
  for (const Seq& s : batch.seqs) {
    const int64_t first = token * together.row_elements(), count = s.num_queries * together.row_elements();
    EXPECT(std::memcmp(&out[first], &expected[first], count * sizeof(T)) == 0,
           "sharing changes bits: sequence %d, len %d, queries %d", s.id, s.len, s.num_queries);
    if (s.num_queries > 0 && s.id % 5 == 1)
      check_row<T, Stored>(shape, s, s.len - s.num_queries, shape.num_heads - 1,
                           &out[first + (shape.num_heads - 1) * shape.dim]);
    token += s.num_queries;
  }
  return {together.num_shared_rows, together.num_shared_items, together.num_shared_states};
}

// `count` sequences, the first num_shared tokens of each from sequence `prefix`, then ragged lengths of their own.
std::vector<Seq> family(int first_id, int count, int prefix, int num_shared, int own = 60, int num_queries = 1) {
  std::vector<Seq> seqs;
  for (int i = 0; i < count; ++i) {
    seqs.push_back({first_id + i, num_shared + num_queries + i * 37 % own, num_queries, {{prefix, num_shared}}});
  }
  return seqs;
}
std::vector<Seq> operator+(std::vector<Seq> a, const std::vector<Seq>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

void test_sharing_groups() {
  const Shape shape{4, 1, 64, 16, 0, false};
  Shared shared = check_sharing<bf16>(shape, {family(1, 9, 900, 600), 1, 2}, ctas(2));
  EXPECT(shared.num_rows == 36 && shared.num_items > 0, "one group: %d rows", shared.num_rows);
  shared =
      check_sharing<bf16>(shape, {family(1, 5, 900, 520) + family(20, 6, 901, 800) + family(40, 3, 902, 600)}, ctas(2));
  EXPECT(shared.num_rows == 44, "two groups, a third is too small: %d rows", shared.num_rows);
  shared = check_sharing<bf16>({8, 1, 64, 16, 0, false}, {family(1, 40, 900, 300, 500)}, ctas(3));
  EXPECT(shared.num_rows == 320 && shared.num_items >= 3, "three tiles: %d items", shared.num_items);
  // the first leader shares one chunk with all and the others share three: those are the group
  std::vector<Seq> partial = {{90, 700, 1, {{900, 260}}}};
  shared = check_sharing<bf16>(shape, {partial + family(1, 8, 900, 800) + family(60, 1, 900, 400)}, ctas(2));
  EXPECT(shared.num_rows > 0, "partial overlap");
  // a system prompt and two documents behind it
  std::vector<Seq> documents = family(1, 7, 900, 900) + family(30, 6, 901, 1000);
  for (Seq& s : documents) s.prefix.insert(s.prefix.begin(), {902, 272});
  shared = check_sharing<bf16>(shape, {documents}, ctas(2));
  EXPECT(shared.num_rows == 52, "both documents: %d rows", shared.num_rows);
  // shorter than a chunk; equal contents in other blocks; a query inside the first chunk
  EXPECT(check_sharing<bf16>(shape, {family(1, 9, 900, 250)}, ctas(1)).num_rows == 0, "no whole chunk");
  EXPECT(check_sharing<bf16>({4, 1, 64, 16, 100, false}, {family(1, 9, 900, 600)}, ctas(1)).num_rows == 0, "window");
  EXPECT(check_sharing<bf16>(shape, {family(1, 3, 900, 600)}, ctas(1)).num_rows == 0, "too few");
  EXPECT(check_sharing<bf16>(shape, {family(1, 4, 900, 270)}, ctas(40)).num_rows == 0, "does not pay");
}

void test_sharing_steps() {
  const Shape shape{4, 1, 64, 16, 0, false};
  // beside prefill, of members too; drafts of several tokens; more rows than one warp's
  const std::vector<Seq> prefill = {{70, 900, 70, {{900, 800}}}, {71, 90, 90}, {72, 0, 0}};
  Shared shared = check_sharing<bf16>(shape, {prefill + family(1, 6, 900, 800) + family(20, 3, 903, 5), 1, 3}, ctas(3));
  EXPECT(shared.num_rows == 24, "beside prefill: %d rows", shared.num_rows);
  const std::vector<Seq> drafts = family(1, 5, 900, 600, 60, 3) + family(10, 5, 900, 600, 300, 6);
  shared = check_sharing<bf16>(shape, {drafts + family(20, 4, 900, 600)}, ctas(2));
  EXPECT(shared.num_rows == 4 * (15 + 30 + 4), "drafts: %d rows", shared.num_rows);
  // a draft that begins inside the last shared chunk shares one less
  check_sharing<bf16>(shape, {family(1, 6, 900, 800) + std::vector<Seq>{{9, 770, 4, {{900, 760}}}}}, ctas(2));
  // all of the table is shared, the queries' own keys included
  std::vector<Seq> copies;
  for (int id = 1; id < 7; ++id) copies.push_back({id, 768, id % 4, {{900, 768}}});
  shared = check_sharing<bf16>(shape, {copies}, ctas(1));
  EXPECT(shared.num_rows == 4 * (1 + 2 + 3 + 1 + 2), "copies: %d rows", shared.num_rows);
  // cut into pieces, with a state per chunk, on many CTAs; by CTAs; long tiles of their own, cut as well
  shared = check_sharing<bf16>(shape, {family(1, 12, 900, 1300, 900)}, ctas(8, deep_slots(64)));
  EXPECT(shared.num_states > 1, "cut: %d states", shared.num_states);
  check_sharing<bf16>(shape, {family(1, 12, 900, 1300, 900)}, decoding_by_cta(8));
  check_sharing<bf16>(shape, {family(1, 12, 900, 1300, 900)}, by_boxes(8));
  check_sharing<bf16>(shape, {drafts + family(20, 4, 900, 600)}, by_boxes(1));
  check_sharing<bf16>(shape, {family(1, 5, 900, 1300) + std::vector<Seq>{{50, 6000, 1, {{900, 1300}}}}}, ctas(3));
  check_sharing<bf16>(shape, {family(1, 5, 900, 1300) + std::vector<Seq>{{50, 6000, 1, {{900, 1300}}}}},
                      decoding_by_cta(3));
  check_sharing<bf16>(shape, {prefill + family(1, 5, 900, 1300) + std::vector<Seq>{{50, 6000, 1, {{900, 1300}}}}},
                      by_boxes(2));
}

void test_sharing_shapes() {
  for (const int dim : {80, 96, 128, 256}) {
    check_sharing<bf16>({4, 2, dim, 16, 0, false}, {family(1, 6, 900, 600)}, ctas(2, deep_slots(dim)));
  }
  check_sharing<f16>({8, 1, 128, 64, 0, true}, {family(1, 20, 900, 700)}, ctas(2));
  check_sharing<bf16, fp8>({8, 1, 128, 64, 0, true}, {family(1, 20, 900, 700)}, ctas(2));
  check_sharing<bf16, fp8>({4, 2, 64, 16, 0, false}, {family(1, 12, 900, 1300, 900)}, ctas(8, deep_slots(32)));
  check_sharing<f16, fp8>({3, 1, 64, 256, 0, true}, {family(1, 9, 900, 600, 300, 3)}, ctas(1));
  check_sharing<bf16, fp8>({8, 1, 128, 64, 0, true}, {family(1, 20, 900, 700)}, by_boxes(2));
  check_sharing<bf16, fp8>({4, 2, 64, 16, 0, false}, {family(1, 12, 900, 1300, 900)}, by_boxes(8));
  check_sharing<f16>({3, 1, 64, 256, 0, true}, {family(1, 50, 900, 600)}, ctas(1));
  check_sharing<bf16>({10, 2, 128, 32, 0, false}, {family(1, 15, 900, 600, 400)}, decoding_by_cta(2));
  check_sharing<f16>({8, 2, 128, 16, 0, false}, {family(1, 20, 900, 700)}, by_boxes(2));
  test::for_each_order([&] {
    check_sharing<bf16>({4, 1, 64, 16, 0, false}, {family(1, 7, 900, 600) + family(20, 5, 901, 300)}, ctas(3));
    check_sharing<bf16>({4, 1, 64, 16, 0, false}, {family(1, 7, 900, 600) + family(20, 5, 901, 300)}, by_boxes(2));
  });
}

// ---- errors -------------------------------------------------------------------------------------------------------

void test_errors() {
  World<bf16> world({4, 2, 64, 16, 0, false}, {{{1, 20, 1}}});
  const auto expect_error = [&](const char* part, const std::function<void(PagedAttentionParams&)>& spoil) {
    PagedAttentionParams p = world.params();
    spoil(p);
    const std::string text = test::error_of([&] { paged_attention(p, {}, {}, nullptr); });
    EXPECT(test::contains(text, part) && test::contains(text, "paged_attention"), "got: %s", text.c_str());
  };
  expect_error("f32 unsupported on CUDA", [](auto& p) { p.dtype = p.kv.dtype = DType::kF32; });
  expect_error("must be equal", [](auto& p) { p.kv.dtype = DType::kF16; });
  expect_error("head_dim 80 unsupported with a cache in f8e4m3 (have 64, 128)", [](auto& p) {
    p.kv.dtype = DType::kF8E4M3;
    p.kv.head_dim = 80;
  });
  expect_error("k_scale and v_scale are of a cache in f8e4m3", [](auto& p) { p.kv.k_scale = kKeyScales; });
  expect_error("head_dim 72 unsupported (have 64, 80, 96, 128, 256)", [](auto& p) { p.kv.head_dim = 72; });
  expect_error("num_heads must be a multiple of num_kv_heads, got 5 and 2", [](auto& p) { p.num_heads = 5; });
  expect_error("block_size must be a power of two in 16 .. 256, got 24", [](auto& p) { p.kv.block_size = 24; });
  expect_error("scale must be positive", [](auto& p) { p.scale = 0; });
  expect_error("q_stride must be a multiple of 16 bytes", [](auto& p) { p.q_token_stride = 257; });
  expect_error("plan needs", [](auto&) {});
}

template <typename Stored>
void test_public_entry() {  // the emulated device's own geometry
  World<bf16, Stored> world({4, 1, 64, 16, 0, false}, {{{1, 700, 1}, {2, 50, 12}}});
  PagedAttentionParams p = world.params();
  Buffer<char> plan(static_cast<int64_t>(attention_plan_bytes(p))),
      work(static_cast<int64_t>(attention_workspace_bytes(p)));
  attention_plan(p, {plan.data(), static_cast<size_t>(plan.size())}, nullptr);
  paged_attention(p, {plan.data(), static_cast<size_t>(plan.size())}, {work.data(), static_cast<size_t>(work.size())},
                  nullptr);
  const auto* out = static_cast<const uint16_t*>(p.out);
  const std::vector<uint16_t> got(out, out + 13 * world.row_elements());
  const std::vector<bf16> expected = world.run(ctas(1));
  EXPECT(std::memcmp(got.data(), expected.data(), got.size() * 2) == 0, "the public entry gives other bits");
}

}  // namespace
}  // namespace pe::cuda

int main() {
  using namespace pe::cuda;
  test_errors();
  test_against_reference();
  test_fp8_against_reference();
  test_same_bits<bf16>({4, 1, 64, 16, 0, false}, 330);
  test_same_bits<f16>({3, 1, 64, 64, 0, true}, 130);
  test_same_bits<bf16>({8, 1, 128, 16, 0, false}, 290);
  test_same_bits<bf16>({4, 1, 64, 16, 100, false}, 400);
  test_orders_and_geometry();
  test_sharing_groups();
  test_sharing_steps();
  test_sharing_shapes();
  test_same_bits<bf16, fp8>({4, 1, 64, 16, 0, false}, 330);
  test_same_bits<f16, fp8>({3, 1, 128, 64, 0, true}, 290);
  test_same_bits<bf16, fp8>({8, 1, 128, 16, 100, false}, 400);
  test_public_entry<bf16>();
  test_public_entry<fp8>();
  return pe::test::report("paged_attention");
}
