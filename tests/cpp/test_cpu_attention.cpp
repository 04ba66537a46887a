// SPDX-License-Identifier: Apache-2.0
// Paged attention, rope_write_kv, block copies and step inputs on the CPU against plain double loops, and the promise
// of batch invariance bit for bit: whole prefill = chunked = token by token = in a crowd = on any number of threads.
//
// Every slot of the cache that a call may not read holds NaN; blocks are shuffled; rows are padded with guard bytes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/math.h"
#include "pe/kv_cache.h"
#include "pe/paged_attention.h"
#include "pe/parallel.h"
#include "pe/step_inputs.h"

namespace {

using namespace pe;
using cpu::BF16;
using cpu::F16;
using cpu::F8;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
int num_failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  if (++num_failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

template <typename Call>
void expect_error(const std::string& what, const std::string& part, Call call) {
  try {
    call();
  } catch (const Error& error) {
    return expect(std::string(error.what()).find(part) != std::string::npos, what + ": says " + error.what());
  }
  expect(false, what + ": no error");
}

// An array of elements of any dtype, read and written as float.
class Array {
 public:
  Array(DType dtype, size_t size) : dtype_(dtype), bytes_(size * size_of(dtype), 0xff) {}  // all bits set is a NaN

  void* data() { return bytes_.data(); }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  float get(int64_t i) const {
    switch (dtype_) {
      case DType::kF32:
        return at<float>(i);
      case DType::kF16:
        return cpu::to_float(at<F16>(i));
      case DType::kF8E4M3:
        return cpu::to_float(at<F8>(i));
      case DType::kBF16:
        break;
    }
    return cpu::to_float(at<BF16>(i));
  }
  void set(int64_t i, float x) {
    switch (dtype_) {
      case DType::kF32:
        return put<float>(i, x);
      case DType::kF16:
        return put<F16>(i, x);
      case DType::kF8E4M3:
        return put<F8>(i, x);
      case DType::kBF16:
        break;
    }
    put<BF16>(i, x);
  }

 private:
  template <typename T>
  T at(int64_t i) const {
    T x;
    std::memcpy(&x, bytes_.data() + i * sizeof(T), sizeof x);
    return x;
  }
  template <typename T>
  void put(int64_t i, float x) {
    T y;
    cpu::from_float(x, &y);
    std::memcpy(bytes_.data() + i * sizeof(T), &y, sizeof y);
  }
  DType dtype_;
  std::vector<uint8_t> bytes_;
};

double unit_roundoff(DType dtype) { return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8; }

// Half a step of the dtype at x.
double rounding(DType dtype, double x) {
  return std::max(unit_roundoff(dtype) * std::abs(x), dtype == DType::kF16 ? 0x1p-25 : 0.0);
}

struct Shape {
  DType dtype = DType::kBF16;
  int head_dim = 64, num_heads = 9, num_kv_heads = 3, block_size = 16, window = 0;
  bool heads_outermost = false;  // layout of a block: [head][token] or [token][head]
  std::string text() const {
    return std::string(name_of(dtype)) + " D" + std::to_string(head_dim) + " H" + std::to_string(num_heads) + "/" +
           std::to_string(num_kv_heads) + " bs" + std::to_string(block_size) + " w" + std::to_string(window);
  }
};

// Sequences whose q, k and v exist as plain arrays; from them a cache is filled up to any length and a step is run.
class World {
 public:
  World(const Shape& shape, std::vector<int> lens, unsigned seed = 1)
      : shape_(shape), lens_(std::move(lens)), rng_(seed) {
    for (const int len : lens_) {
      q_.emplace_back(fill(size_t(len) * shape.num_heads * shape.head_dim, 2.0f));
      k_.emplace_back(fill(size_t(len) * shape.num_kv_heads * shape.head_dim, 1.0f));
      v_.emplace_back(fill(size_t(len) * shape.num_kv_heads * shape.head_dim, 1.0f));
    }
  }

  struct Piece {
    int seq, begin, end;  // queries [begin, end) of the sequence, whose cache then holds `end` tokens
  };

  // Runs the pieces in one call; returns for each its rows of `out`, [queries][heads][head_dim], as raw bytes.
  std::vector<std::vector<uint8_t>> step(const std::vector<Piece>& pieces, int num_padding = 0) {
    const int D = shape_.head_dim, H = shape_.num_heads, HK = shape_.num_kv_heads, bs = shape_.block_size;
    const int num_seqs = static_cast<int>(pieces.size());
    int max_blocks = 1, num_tokens = 0;
    for (const Piece& piece : pieces) {
      max_blocks = std::max(max_blocks, (piece.end + bs - 1) / bs);
      num_tokens += piece.end - piece.begin;
    }
    const int num_blocks = max_blocks * num_seqs + 3, table_stride = max_blocks + 2;
    std::vector<int32_t> blocks(num_blocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), rng_);
    std::vector<int32_t> rows(num_seqs + num_padding);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), rng_);
    std::vector<int32_t> tables(rows.size() * table_stride, 1 << 30);  // an entry that may not be followed

    PagedAttentionParams p;
    PagedKV& kv = p.kv;
    const int64_t row_stride = D + 8;
    kv.token_stride = shape_.heads_outermost ? row_stride : row_stride * HK;
    kv.head_stride = shape_.heads_outermost ? row_stride * bs : row_stride;
    kv.block_stride = row_stride * bs * HK + 16;
    Array k(shape_.dtype, num_blocks * kv.block_stride), v(shape_.dtype, num_blocks * kv.block_stride);
    p.q_head_stride = D + 8, p.q_token_stride = p.q_head_stride * H + 24;
    p.out_head_stride = D + 16, p.out_token_stride = p.out_head_stride * H + 8;
    Array q(shape_.dtype, (num_tokens + 1) * p.q_token_stride),
        out(shape_.dtype, (num_tokens + 1) * p.out_token_stride);
    std::vector<int32_t> query_start = {0}, seq_lens;
    int next_block = 0;
    for (int s = 0; s < num_seqs; ++s) {
      const auto [seq, begin, end] = pieces[s];
      const int oldest = shape_.window > 0 ? std::max(0, begin - shape_.window + 1) : 0;
      int32_t* table = tables.data() + rows[s] * table_stride;
      for (int t = oldest; t < end; ++t) {
        if (t == oldest || t % bs == 0) table[t / bs] = blocks[next_block++];
        for (int h = 0; h < HK; ++h) {
          const int64_t at = table[t / bs] * kv.block_stride + h * kv.head_stride + t % bs * kv.token_stride;
          for (int d = 0; d < D; ++d) {
            k.set(at + d, k_[seq].get((int64_t(t) * HK + h) * D + d));
            v.set(at + d, v_[seq].get((int64_t(t) * HK + h) * D + d));
          }
        }
      }
      for (int t = begin; t < end; ++t) {
        for (int h = 0; h < H; ++h) {
          for (int d = 0; d < D; ++d) {
            q.set((query_start.back() + t - begin) * p.q_token_stride + h * p.q_head_stride + d,
                  q_[seq].get((int64_t(t) * H + h) * D + d));
          }
        }
      }
      query_start.push_back(query_start.back() + end - begin);
      seq_lens.push_back(end);
    }
    for (int i = 0; i < num_padding; ++i) query_start.push_back(num_tokens), seq_lens.push_back(i % 2 ? 0 : 77);

    p.out = out.data(), p.q = q.data(), kv.k = k.data(), kv.v = v.data();
    kv.num_blocks = num_blocks, kv.block_size = bs, kv.num_kv_heads = HK, kv.head_dim = D, kv.dtype = shape_.dtype;
    p.block_tables = tables.data(), p.block_table_stride = table_stride, p.table_rows = rows.data();
    p.query_start = query_start.data(), p.seq_lens = seq_lens.data();
    p.num_seqs = num_seqs + num_padding, p.num_tokens = num_tokens + 1, p.num_heads = H;
    p.max_seq_len = 1 << 20, p.scale = scale(), p.window = shape_.window, p.dtype = shape_.dtype;
    cpu::paged_attention(p);
    return take_rows(p, out, pieces, query_start);
  }

  void break_query(int seq, int t) { q_[seq].set(int64_t(t) * shape_.num_heads * shape_.head_dim, kNaN); }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // Kernels on bf16 pairs round the weights, e^(s - max) <= 1, to bf16; the others keep them in fp32.
  double weight_rounding() const {
    const std::string isa = cpu::isa();
    const bool pairs =
        shape_.dtype == DType::kBF16 && shape_.head_dim % 32 == 0 && (isa == "amx" || isa == "avx512bf16");
    return pairs ? unit_roundoff(DType::kBF16) : 0;
  }

  // Against double loops; the bound is one rounding of the result plus what the sums lose.
  void check(const Piece& piece, const std::vector<uint8_t>& bytes, const std::string& what) {
    const int D = shape_.head_dim, H = shape_.num_heads, HK = shape_.num_kv_heads, G = H / HK, seq = piece.seq;
    Array out(shape_.dtype, bytes.size() / size_of(shape_.dtype));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    std::vector<double> weights(piece.end);
    for (int t = piece.begin; t < piece.end; ++t) {
      const bool edge = t < 35 || t + 2 >= piece.end || t % 64 < 1 || t % 64 > 62;
      if (!edge && t % 11 != 0) continue;
      for (int h = 0; h < H; ++h) {
        const int first = shape_.window > 0 ? std::max(0, t - shape_.window + 1) : 0;
        double top = -1e300, total = 0;
        for (int j = first; j <= t; ++j) {
          double s = 0;
          for (int d = 0; d < D; ++d) s += double(q(seq, t, h, d)) * key(seq, j, h / G, d);
          weights[j] = s * scale();
          top = std::max(top, weights[j]);
        }
        for (int j = first; j <= t; ++j) total += weights[j] = std::exp(weights[j] - top);
        for (int d = 0; d < D; ++d) {
          double expected = 0, size = 0;
          for (int j = first; j <= t; ++j) {
            const double term = weights[j] * v_[seq].get((int64_t(j) * HK + h / G) * D + d) / total;
            expected += term, size += std::abs(term);
          }
          const double got = out.get((int64_t(t - piece.begin) * H + h) * D + d);
          const double bound = 1.01 * rounding(shape_.dtype, expected) + (weight_rounding() + 1e-5) * size;
          expect(std::abs(got - expected) <= bound, what + " position " + std::to_string(t) + " head " +
                                                        std::to_string(h) + ": got " + std::to_string(got) +
                                                        ", expected " + std::to_string(expected));
        }
      }
    }
  }

 private:
  Array fill(size_t size, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    Array a(shape_.dtype, size);
    for (size_t i = 0; i < size; ++i) a.set(i, normal(rng_));
    return a;
  }
  float q(int seq, int t, int h, int d) const {
    return q_[seq].get((int64_t(t) * shape_.num_heads + h) * shape_.head_dim + d);
  }
  float key(int seq, int t, int h, int d) const {
    return k_[seq].get((int64_t(t) * shape_.num_kv_heads + h) * shape_.head_dim + d);
  }

  // Also looks at the guard elements between and after the rows.
  std::vector<std::vector<uint8_t>> take_rows(const PagedAttentionParams& p, const Array& out,
                                              const std::vector<Piece>& pieces,
                                              const std::vector<int32_t>& query_start) {
    const size_t element = size_of(shape_.dtype), head_bytes = shape_.head_dim * element;
    std::vector<uint8_t> guard = out.bytes();
    std::vector<std::vector<uint8_t>> rows(pieces.size());
    for (size_t s = 0; s < pieces.size(); ++s) {
      for (int t = query_start[s]; t < query_start[s + 1]; ++t) {
        for (int h = 0; h < p.num_heads; ++h) {
          uint8_t* row = guard.data() + (t * p.out_token_stride + h * p.out_head_stride) * element;
          rows[s].insert(rows[s].end(), row, row + head_bytes);
          std::memset(row, 0xff, head_bytes);
        }
      }
    }
    expect(std::all_of(guard.begin(), guard.end(), [](uint8_t b) { return b == 0xff; }),
           shape_.text() + ": wrote outside its rows");
    return rows;
  }

  Shape shape_;
  std::vector<int> lens_;
  std::mt19937 rng_;
  std::vector<Array> q_, k_, v_;
};

std::vector<uint8_t> join(const std::vector<std::vector<uint8_t>>& parts) {
  std::vector<uint8_t> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Against double loops: whole prefill of every length in one call, then one decode of every length in one call.
void test_values(const Shape& shape) {
  const int bs = shape.block_size;
  const std::vector<int> lens = {1, bs - 1, bs, bs + 1, 2 * bs + 3, 255, 256, 257};
  World world(shape, lens);
  std::vector<World::Piece> prefill, decode;
  for (int s = 0; s < int(lens.size()); ++s) {
    prefill.push_back({s, 0, lens[s]});
    decode.push_back({s, lens[s] - 1, lens[s]});
  }
  const auto rows = world.step(prefill, 2), last = world.step(decode, 3);
  for (size_t s = 0; s < lens.size(); ++s) {
    world.check(prefill[s], rows[s], shape.text() + " prefill " + std::to_string(lens[s]));
    expect(std::equal(last[s].begin(), last[s].end(), rows[s].end() - last[s].size()),
           shape.text() + ": decode differs from prefill at " + std::to_string(lens[s]));
  }
}

// Bits: one sequence whole, in odd pieces, token by token; alone and among others; one and two threads.
void test_invariance(const Shape& shape, int len) {
  const std::vector<int> lens = {len, 300, 5, 700, 33, 1};
  World world(shape, lens, 7);
  cpu::set_num_threads(1);
  const auto whole = world.step({{0, 0, len}})[0];
  const std::string what = shape.text() + " length " + std::to_string(len) + " " + cpu::isa();
  for (const int threads : {1, 2, 5}) {
    cpu::set_num_threads(threads);
    const std::string on = what + " on " + std::to_string(threads) + " threads: ";
    expect(world.step({{0, 0, len}})[0] == whole, on + "whole");
    for (const std::vector<int>& cuts :
         {std::vector<int>{1, 63, 64, 130, 257}, {100, 101, 255, 256, 511}, {64, 128, 192}}) {
      std::vector<std::vector<uint8_t>> parts;
      int begin = 0;
      for (const int cut : cuts) {
        if (cut >= len) break;
        parts.push_back(world.step({{3, 600, 700}, {0, begin, cut}, {2, 4, 5}})[1]);
        begin = cut;
      }
      parts.push_back(world.step({{0, begin, len}})[0]);
      expect(join(parts) == whole, on + "chunked at " + std::to_string(cuts[0]));
    }
    const auto crowd = world.step({{1, 299, 300}, {3, 0, 700}, {0, 0, len}, {4, 10, 33}, {5, 0, 1}}, 1);
    expect(crowd[2] == whole, on + "in a crowd");
    const size_t row_bytes = whole.size() / len;
    for (int t = 0; t < len; t += t < 270 && threads == 2 ? 1 : 37) {
      const auto alone = world.step({{0, t, t + 1}})[0];
      expect(std::equal(alone.begin(), alone.end(), whole.begin() + t * row_bytes), on + "token " + std::to_string(t));
    }
  }
  cpu::set_num_threads(2);
}

// A NaN in one query makes that row NaN and no other.
void test_broken_query() {
  Shape shape;
  World world(shape, {40, 90});
  const auto before = world.step({{0, 0, 40}, {1, 80, 90}});
  world.break_query(0, 17);
  const auto after = world.step({{0, 0, 40}, {1, 80, 90}});
  const size_t head_bytes = shape.head_dim * size_of(shape.dtype), at = 17 * shape.num_heads * head_bytes;
  Array head(shape.dtype, shape.head_dim);
  std::memcpy(head.data(), after[0].data() + at, head_bytes);
  for (int d = 0; d < shape.head_dim; ++d) expect(std::isnan(head.get(d)), "a broken query gives numbers");
  auto repaired = after[0];
  std::copy_n(before[0].begin() + at, head_bytes, repaired.begin() + at);
  expect(repaired == before[0] && after[1] == before[1], "a broken query spreads");
}

void test_errors() {
  PagedAttentionParams p;
  p.num_heads = 8, p.kv.num_kv_heads = 4, p.kv.head_dim = 64;
  PagedAttentionParams bad = p;
  bad.kv.head_dim = 260;
  expect_error("head_dim", "head_dim", [&] { cpu::paged_attention(bad); });
  bad = p, bad.num_heads = 9;
  expect_error("num_heads", "num_heads", [&] { cpu::paged_attention(bad); });
  bad = p, bad.kv.block_size = 24;
  expect_error("block_size", "block_size", [&] { cpu::paged_attention(bad); });
  bad = p, bad.kv.dtype = DType::kF32;
  expect_error("dtype", "dtype", [&] { cpu::paged_attention(bad); });
  const int32_t query_start[] = {0, 5}, seq_lens[] = {4};
  bad = p, bad.query_start = query_start, bad.seq_lens = seq_lens, bad.num_seqs = 1, bad.num_tokens = 5;
  expect_error("seq_lens", "sequence 0", [&] { cpu::paged_attention(bad); });
  cpu::paged_attention(p);  // no sequences: nothing to do
}

struct RopeShape {
  DType dtype;
  int head_dim, rotary_dim;
  bool norm;
};

void test_rope_write_kv(const RopeShape& shape) {
  const int D = shape.head_dim, R = shape.rotary_dim, H = 6, HK = 2, bs = 16, num_tokens = 75, num_blocks = 12,
            max_position = 90;
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  const int64_t width = (H + 2 * HK) * D, stride = width + 8;
  Array qkv(shape.dtype, num_tokens * stride), q_norm(shape.dtype, D), k_norm(shape.dtype, D);
  for (int64_t i = 0; i < num_tokens * stride; ++i) {
    if (i % stride < width) qkv.set(i, normal(rng));
  }
  for (int d = 0; d < D; ++d) q_norm.set(d, 1 + 0.1f * normal(rng)), k_norm.set(d, 1 + 0.1f * normal(rng));
  std::vector<float> cos_sin(size_t(max_position) * std::max(R, 1));
  for (float& x : cos_sin) x = normal(rng);
  std::vector<int64_t> slots(num_blocks * bs);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), rng);
  std::vector<int32_t> positions(num_tokens);
  for (int t = 0; t < num_tokens; ++t) {
    positions[t] = rng() % max_position;
    if (t % 7 == 3) slots[t] = -1, positions[t] = 1 << 30;  // padding: its position may not be followed
  }
  RopeWriteKvParams p;
  p.kv.head_stride = D + 8, p.kv.token_stride = p.kv.head_stride * HK, p.kv.block_stride = p.kv.token_stride * bs + 8;
  Array k(shape.dtype, num_blocks * p.kv.block_stride), v(shape.dtype, num_blocks * p.kv.block_stride);
  const Array before = qkv;
  p.qkv = qkv.data(), p.positions = positions.data(), p.slot_mapping = slots.data(),
  p.cos_sin = R ? cos_sin.data() : nullptr;
  if (shape.norm) p.q_norm = q_norm.data(), p.k_norm = k_norm.data();
  p.kv.k = k.data(), p.kv.v = v.data(), p.kv.num_blocks = num_blocks, p.kv.block_size = bs, p.kv.num_kv_heads = HK;
  p.kv.head_dim = D, p.kv.dtype = p.dtype = shape.dtype, p.num_tokens = num_tokens, p.qkv_stride = stride;
  p.max_position = max_position, p.num_heads = H, p.rotary_dim = R, p.norm_eps = 1e-5f;
  cpu::rope_write_kv(p);

  const std::string what = std::string("rope_write_kv ") + name_of(shape.dtype) + " D" + std::to_string(D) + " R" +
                           std::to_string(R) + (shape.norm ? " norm " : " ") + cpu::isa();
  std::vector<uint8_t> k_seen(k.bytes().size() / size_of(shape.dtype)), v_seen = k_seen;
  for (int t = 0; t < num_tokens; ++t) {
    for (int head = 0; head < H + 2 * HK; ++head) {
      const int64_t from = t * stride + head * D;
      const bool is_q = head < H, is_v = head >= H + HK;
      std::vector<double> x(D);
      double squares = 0;
      for (int d = 0; d < D; ++d) x[d] = before.get(from + d), squares += x[d] * x[d];
      if (shape.norm && !is_v) {
        for (int d = 0; d < D; ++d)
          x[d] *= (is_q ? q_norm : k_norm).get(d) / std::sqrt(squares / D + double(p.norm_eps));
      }
      std::vector<double> y = x;
      std::vector<double> size(D);
      for (int d = 0; d < D; ++d) size[d] = std::abs(x[d]);
      if (!is_v && slots[t] >= 0) {
        for (int i = 0; i < R / 2; ++i) {
          const double c = cos_sin[positions[t] * R + i], s = cos_sin[positions[t] * R + R / 2 + i], a = x[i],
                       b = x[i + R / 2];
          y[i] = a * c - b * s, y[i + R / 2] = b * c + a * s;
          size[i] = std::abs(a * c) + std::abs(b * s), size[i + R / 2] = std::abs(b * c) + std::abs(a * s);
        }
      }
      const int64_t place = slots[t] < 0 ? 0 : slots[t] / bs * p.kv.block_stride + slots[t] % bs * p.kv.token_stride;
      for (int d = 0; d < D; ++d) {
        const int64_t at = place + (head - H - (is_v ? HK : 0)) * p.kv.head_stride + d;
        if (slots[t] < 0 || !is_q) expect(qkv.get(from + d) == before.get(from + d), what + ": touched qkv");
        if (slots[t] < 0) continue;
        const double got = is_q ? qkv.get(from + d) : is_v ? v.get(at) : k.get(at);
        if (!is_q) (is_v ? v_seen : k_seen)[at] = 1;
        expect(std::abs(got - y[d]) <= 1.01 * rounding(shape.dtype, y[d]) + 1e-6 * size[d],
               what + ": got " + std::to_string(got) + ", expected " + std::to_string(y[d]));
      }
    }
  }
  for (size_t i = 0; i < k_seen.size(); ++i) {
    expect(k_seen[i] || std::isnan(k.get(i)), what + ": wrote K outside its slots");
    expect(v_seen[i] || std::isnan(v.get(i)), what + ": wrote V outside its slots");
  }
  // Row by row gives the same bits.
  Array again = before;
  Array k2(shape.dtype, num_blocks * p.kv.block_stride), v2(shape.dtype, num_blocks * p.kv.block_stride);
  p.kv.k = k2.data(), p.kv.v = v2.data(), p.num_tokens = 1;
  for (int t = 0; t < num_tokens; ++t) {
    p.qkv = static_cast<uint8_t*>(again.data()) + t * stride * size_of(shape.dtype);
    p.positions = &positions[t], p.slot_mapping = &slots[t];
    cpu::rope_write_kv(p);
  }
  expect(again.bytes() == qkv.bytes() && k.bytes() == k2.bytes() && v.bytes() == v2.bytes(),
         what + ": depends on the batch");
}

void test_blocks() {
  const int num_parts = 3, num_blocks = 9, block_bytes = 48;
  const int64_t block_stride = 64, part_stride = block_stride * num_blocks + 32;
  std::mt19937 rng(5);
  std::vector<uint8_t> arena(num_parts * part_stride);
  for (uint8_t& b : arena) b = static_cast<uint8_t>(rng());
  std::vector<uint8_t> expected = arena;
  const std::vector<int32_t> pairs = {0, 5, 3, 1, 2, -1, 0, 7, 8, 4};
  for (size_t i = 0; i < pairs.size(); i += 2) {
    for (int part = 0; part < num_parts && pairs[i + 1] >= 0; ++part) {
      std::memcpy(&expected[part * part_stride + pairs[i + 1] * block_stride],
                  &expected[part * part_stride + pairs[i] * block_stride], block_bytes);
    }
  }
  CopyBlocksParams copy;
  copy.arena = arena.data(), copy.num_parts = num_parts, copy.part_stride_bytes = part_stride;
  copy.block_stride_bytes = block_stride, copy.block_bytes = block_bytes, copy.pairs = pairs.data(), copy.num_pairs = 5;
  cpu::copy_blocks(copy);
  expect(arena == expected, "copy_blocks");

  const int64_t host_block = 48, host_part = host_block * num_blocks;
  std::vector<uint8_t> host(num_parts * host_part, 0xaa), host_expected = host;
  const std::vector<int32_t> out_pairs = {1, 0, 8, 3, 4, 8};
  SwapBlocksParams swap;
  swap.dst = host.data(), swap.src = arena.data(), swap.num_parts = num_parts, swap.block_bytes = block_bytes;
  swap.dst_part_stride_bytes = host_part, swap.dst_block_stride_bytes = host_block;
  swap.src_part_stride_bytes = part_stride, swap.src_block_stride_bytes = block_stride;
  swap.pairs = out_pairs.data(), swap.num_pairs = 3;
  for (size_t i = 0; i < out_pairs.size(); i += 2) {
    for (int part = 0; part < num_parts; ++part) {
      std::memcpy(&host_expected[part * host_part + out_pairs[i + 1] * host_block],
                  &arena[part * part_stride + out_pairs[i] * block_stride], block_bytes);
    }
  }
  cpu::swap_blocks(swap);
  expect(host == host_expected, "swap_blocks");
  copy.block_bytes = 40;
  expect_error("copy_blocks", "block_bytes", [&] { cpu::copy_blocks(copy); });
}

void test_step_inputs() {
  const int block_size = 16, num_tokens = 12, stride = 4;
  const std::vector<int32_t> last_tokens = {100, 101, 102, 103, 104};
  std::vector<int32_t> tables(5 * stride, -1);
  UpdateBlockTablesParams update;
  const std::vector<int32_t> entries = {3, 0, 7, 3, 1, 2, 1, 2, 9, -1, 0, 5, 4, 0, 6};
  update.block_tables = tables.data(), update.block_table_stride = stride;
  update.entries = entries.data(), update.num_entries = 5;
  cpu::update_block_tables(update);
  const std::vector<int32_t> expected_tables = {-1, -1, -1, -1, -1, -1, 9, -1, -1, -1,
                                                -1, -1, 7,  2,  -1, -1, 6, -1, -1, -1};
  expect(tables == expected_tables, "update_block_tables");

  const std::vector<int32_t> rows = {1, 3, -1, 4}, num_new = {1, 5, 99, 2}, computed = {40, 14, 99, 0},
                             offsets = {-1, 2, 99, 0};
  const std::vector<int32_t> prompt = {10, 11, 12, 13, 14, 15, 16};
  std::vector<int32_t> query_start(5, -7), seq_lens(4, -7), ids(num_tokens, -7), positions(num_tokens, -7), last(4, -7);
  std::vector<int64_t> slots(num_tokens, -7);
  StepInputsParams p;
  p.last_tokens = last_tokens.data(), p.block_tables = tables.data(), p.block_table_stride = stride,
  p.block_size = block_size;
  p.rows = rows.data(), p.num_new_tokens = num_new.data(), p.num_computed = computed.data(),
  p.prompt_offsets = offsets.data();
  p.prompt_ids = prompt.data(), p.num_seqs = 4, p.query_start = query_start.data(), p.seq_lens = seq_lens.data();
  p.input_ids = ids.data(), p.positions = positions.data(), p.slot_mapping = slots.data(), p.last_indices = last.data();
  p.num_tokens = num_tokens;
  cpu::step_inputs(p);
  using I = std::vector<int32_t>;
  expect(query_start == I{0, 1, 6, 6, 8}, "step_inputs: query_start");
  expect(seq_lens == I{41, 19, 0, 2}, "step_inputs: seq_lens");
  expect(ids == I{101, 12, 13, 14, 15, 16, 10, 11, 0, 0, 0, 0}, "step_inputs: input_ids");
  expect(positions == I{40, 14, 15, 16, 17, 18, 0, 1, 0, 0, 0, 0}, "step_inputs: positions");
  expect(slots == std::vector<int64_t>{152, 126, 127, 32, 33, 34, 96, 97, -1, -1, -1, -1}, "step_inputs: slot_mapping");
  expect(last == I{0, 5, 0, 7}, "step_inputs: last_indices");
  p.num_tokens = 7;
  expect_error("step_inputs", "num_tokens", [&] { cpu::step_inputs(p); });

  I store = last_tokens;
  const I sampled = {5, 6, 7, -1};
  StoreTokensParams s;
  s.last_tokens = store.data(), s.rows = rows.data(), s.token_ids = sampled.data(), s.num_sampled = 4;
  cpu::store_tokens(s);
  expect(store == I{100, 5, 102, 6, 104}, "store_tokens");

  const std::vector<float> x = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> out(8, -7);
  const I indices = {2, 0, 2};
  GatherRowsParams g;
  g.out = out.data(), g.x = x.data(), g.indices = indices.data(), g.num_indices = 3, g.cols = 2;
  g.out_stride = 3, g.x_stride = 3, g.dtype = DType::kF32;
  cpu::gather_rows(g);
  expect(out == std::vector<float>{6, 7, -7, 0, 1, -7, 6, 7}, "gather_rows");
}

void test_on_this_isa() {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    Shape shape;
    shape.dtype = dtype;
    test_values(shape);
    shape.head_dim = 72, shape.num_heads = 4, shape.num_kv_heads = 4, shape.heads_outermost = true,
    shape.block_size = 32;
    test_values(shape);
    shape.head_dim = 128, shape.num_heads = 7, shape.num_kv_heads = 1, shape.window = 50;
    test_values(shape);
    for (const RopeShape& rope : {RopeShape{dtype, 64, 64, false},
                                  {dtype, 128, 128, true},
                                  {dtype, 72, 40, true},
                                  {dtype, 80, 20, false},
                                  {dtype, 64, 0, false},
                                  {dtype, 256, 0, true}}) {
      test_rope_write_kv(rope);
    }
  }
  Shape wide;
  wide.head_dim = 256, wide.num_heads = 4, wide.num_kv_heads = 2, wide.block_size = 256, wide.window = 200;
  test_values(wide);
  Shape narrow;
  narrow.head_dim = 8, narrow.num_heads = 40, narrow.num_kv_heads = 1, narrow.window = 1;
  test_values(narrow);
  test_invariance(Shape(), 600);
  test_broken_query();
  Shape windowed;
  windowed.dtype = DType::kF32, windowed.window = 100, windowed.head_dim = 40, windowed.block_size = 32;
  test_invariance(windowed, 330);
}

}  // namespace

int main() {
  test_errors();
  test_blocks();
  test_step_inputs();
  const std::string best = cpu::isa();
  for (const char* name : {"generic", "avx2", "avx512bf16", "amx"}) {
    cpu::set_isa(name);
    test_on_this_isa();
    std::printf("%s: %s\n", name, num_failures ? "failed" : "ok");
    if (best == name) break;
  }
  if (num_failures) std::printf("%d checks failed\n", num_failures);
  return num_failures ? 1 : 0;
}
