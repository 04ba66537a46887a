// SPDX-License-Identifier: Apache-2.0
// rope_write_kv, copy_blocks and swap_blocks under the emulator against double-precision loops and plain copies.
#include <algorithm>
#include <numeric>

#include "cuda/common/fp8.cuh"
#include "harness.h"
#include "pe/kv_cache.h"

namespace pe::test {
namespace {

using cuda::from_float;
using cuda::to_float;

struct RopeCase {
  int num_heads, num_kv_heads, head_dim, rotary_dim, block_size;  // rotary_dim 0: no rotation
  bool norm;
  bool heads_first;  // layout of the cache: [block, head, token, d], else [block, token, head, d]
};

constexpr int kTokens = 7, kBlocks = 4, kMaxPosition = 40;

constexpr float kKeyScales[] = {1, 0.7f, 1.3f, 2, 0.9f, 3, 0.1f, 5}, kValueScales[] = {0.3f, 1, 2.5f, 0.6f, 4, 1, 1, 2};

// The cache holds Stored.
template <typename T, typename Stored = T>
struct RopeFixture {
  RopeCase c;
  int64_t heads, width, qkv_stride, block_stride;
  Buffer<T> qkv;
  Buffer<Stored> k, v;
  Buffer<T> q_norm, k_norm;
  Buffer<float> cos_sin;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;

  explicit RopeFixture(const RopeCase& rope_case)
      : c(rope_case),
        heads(c.num_heads + 2 * c.num_kv_heads),
        width(heads * c.head_dim),
        qkv_stride(width + 16),
        block_stride(int64_t{c.block_size} * c.num_kv_heads * c.head_dim + 32),
        qkv(kTokens * qkv_stride),
        k(kBlocks * block_stride),
        v(kBlocks * block_stride),
        q_norm(c.head_dim),
        k_norm(c.head_dim),
        cos_sin(int64_t{kMaxPosition} * std::max(c.rotary_dim, 1)) {
    Random random(static_cast<uint64_t>(c.head_dim * 7 + c.num_heads));
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t i = 0; i < width; ++i) qkv[t * qkv_stride + i] = from_float<T>(2 * random.uniform());
      positions.push_back(static_cast<int32_t>(random.below(kMaxPosition)));
    }
    for (int64_t i = 0; i < c.head_dim; ++i) {
      q_norm[i] = from_float<T>(1 + random.uniform() / 2);
      k_norm[i] = from_float<T>(1 + random.uniform() / 2);
    }
    for (int64_t i = 0; c.rotary_dim > 0 && i < cos_sin.size(); ++i) cos_sin[i] = random.uniform();
    slots = {c.block_size * 2 + 3, -1, c.block_size * 3 + c.block_size - 1, 0, c.block_size, -1, 5};
  }

  RopeWriteKvParams params() {
    RopeWriteKvParams p;
    p.qkv = qkv.data();
    p.positions = positions.data();
    p.slot_mapping = slots.data();
    p.cos_sin = c.rotary_dim > 0 ? cos_sin.data() : nullptr;
    p.q_norm = c.norm ? q_norm.data() : nullptr;
    p.k_norm = c.norm ? k_norm.data() : nullptr;
    p.kv.k = k.data();
    p.kv.v = v.data();
    p.kv.block_stride = block_stride;
    p.kv.head_stride = c.heads_first ? int64_t{c.block_size} * c.head_dim : c.head_dim;
    p.kv.token_stride = c.heads_first ? c.head_dim : int64_t{c.num_kv_heads} * c.head_dim;
    p.kv.num_blocks = kBlocks;
    p.kv.block_size = c.block_size;
    p.kv.num_kv_heads = c.num_kv_heads;
    p.kv.head_dim = c.head_dim;
    p.kv.dtype = p.dtype = dtype_of<T>();
    if constexpr (std::is_same_v<Stored, cuda::fp8>) {
      p.kv.dtype = DType::kF8E4M3;
      p.kv.k_scale = kKeyScales;
      p.kv.v_scale = kValueScales;
    }
    p.num_tokens = kTokens;
    p.qkv_stride = qkv_stride;
    p.max_position = kMaxPosition;
    p.num_heads = c.num_heads;
    p.rotary_dim = c.rotary_dim;
    p.norm_eps = 1e-6f;
    return p;
  }

  // One head of token t as it must come out, in double.
  std::vector<double> expected_head(const T* before, int64_t t, bool rotate, T* norm) {
    std::vector<double> x(static_cast<size_t>(c.head_dim));
    double squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = to_float(before[i]);
      squares += x[i] * x[i];
    }
    if (norm != nullptr) {
      const double scale = 1 / std::sqrt(squares / c.head_dim + 1e-6);
      for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * to_float(norm[i]);
    }
    const int half = c.rotary_dim / 2;
    for (int i = 0; rotate && i < half; ++i) {
      const float* row = cos_sin.data() + int64_t{positions[static_cast<size_t>(t)]} * c.rotary_dim;
      const double a = x[static_cast<size_t>(i)], b = x[static_cast<size_t>(i + half)];
      x[static_cast<size_t>(i)] = a * row[i] - b * row[half + i];
      x[static_cast<size_t>(i + half)] = b * row[i] + a * row[half + i];
    }
    return x;
  }
};

template <typename T>
void check_head(const T* got, const std::vector<double>& expected, const char* what, int64_t t, int64_t h) {
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT(close(got[i], expected[i]), "%s %s token %ld head %ld element %zu: %f not %f", name_of(dtype_of<T>()), what,
           t, h, i, to_float(got[i]), expected[i]);
  }
}

// The nearest e4m3 of expected / scale, or where fp32's error may decide, one of its two neighbours.
void check_head(const cuda::fp8* got, std::vector<double> expected, const char* what, int64_t t, int64_t h,
                float scale) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double wanted = expected[i] / scale, error = std::abs(to_float(got[i]) - wanted);
    const double nearest = std::abs(to_float(cuda::fp8{static_cast<uint8_t>(cuda::narrow_fp8(wanted))}) - wanted);
    EXPECT(error <= nearest + 1e-6 * std::max(1.0, std::abs(wanted)),
           "e4m3 %s token %ld head %ld element %zu: %f not %f", what, t, h, i, to_float(got[i]), wanted);
  }
}
template <typename T>
void check_head(const T* got, const std::vector<double>& expected, const char* what, int64_t t, int64_t h, float) {
  check_head(got, expected, what, t, h);
}

template <typename T, typename Stored = T>
void run_rope(const RopeCase& c) {
  RopeFixture<T, Stored> f(c);
  const std::vector<unsigned char> before_bytes = f.qkv.bytes();
  const T* before = reinterpret_cast<const T*>(before_bytes.data());
  const RopeWriteKvParams p = f.params();
  cuda::rope_write_kv(p, nullptr);

  std::vector<bool> written(static_cast<size_t>(kBlocks * f.block_stride), false);
  for (int64_t t = 0; t < kTokens; ++t) {
    const T* row_before = before + t * f.qkv_stride;
    T* row = f.qkv.data() + t * f.qkv_stride;
    const int64_t slot = f.slots[static_cast<size_t>(t)];
    if (slot < 0) {
      EXPECT(std::memcmp(row, row_before, static_cast<size_t>(f.qkv_stride) * sizeof(T)) == 0, "padding token %ld", t);
      continue;
    }
    for (int64_t h = 0; h < c.num_heads; ++h) {
      T* norm = c.norm ? f.q_norm.data() : nullptr;
      check_head(row + h * c.head_dim, f.expected_head(row_before + h * c.head_dim, t, true, norm), "q", t, h);
    }
    const int64_t kv_at = int64_t{c.num_heads} * c.head_dim;
    EXPECT(std::memcmp(row + kv_at, row_before + kv_at, static_cast<size_t>(f.qkv_stride - kv_at) * sizeof(T)) == 0,
           "k and v of token %ld stay as they were in qkv", t);
    for (int64_t h = 0; h < c.num_kv_heads; ++h) {
      const int64_t at =
          slot / c.block_size * f.block_stride + h * p.kv.head_stride + slot % c.block_size * p.kv.token_stride;
      T* norm = c.norm ? f.k_norm.data() : nullptr;
      const T* k_before = row_before + kv_at + h * c.head_dim;
      check_head(f.k.data() + at, f.expected_head(k_before, t, true, norm), "k", t, h, kKeyScales[h]);
      check_head(f.v.data() + at, f.expected_head(k_before + c.num_kv_heads * c.head_dim, t, false, nullptr), "v", t, h,
                 kValueScales[h]);
      std::fill_n(written.begin() + at, c.head_dim, true);
    }
  }
  for (int64_t i = 0; i < kBlocks * f.block_stride; ++i) {
    if (written[static_cast<size_t>(i)]) continue;
    EXPECT(f.k.untouched(i, 1) && f.v.untouched(i, 1), "cache element %ld belongs to no token", i);
  }
  EXPECT(f.qkv.guards_intact() && f.k.guards_intact() && f.v.guards_intact());
}

void test_rope() {
  const RopeCase cases[] = {
      {9, 3, 64, 64, 16, false, false}, {4, 2, 128, 128, 32, true, true}, {32, 8, 128, 128, 16, false, true},
      {3, 1, 64, 32, 16, true, false},  {2, 2, 96, 32, 16, true, false},  {5, 1, 80, 80, 16, true, true},
      {2, 1, 256, 64, 16, true, false}, {4, 2, 64, 0, 16, false, true},   {4, 2, 128, 0, 256, true, false},
      {1, 1, 32, 32, 16, true, true},
  };
  for_each_dtype([&](auto t) {
    for (const RopeCase& c : cases) for_each_order([&] { run_rope<decltype(t)>(c); });
    for (const RopeCase& c : cases) run_rope<decltype(t), cuda::fp8>(c);
  });
}

// All numbers that e4m3 has, those just beside the middle between two of them, and those beyond.
void test_fp8() {
  std::vector<float> numbers;
  for (int bits = 0; bits < 0x7f; ++bits) {
    const auto byte = static_cast<uint8_t>(bits);
    numbers.push_back(to_float(cuda::fp8{byte}));
    for (const uint32_t sign : {0u, 0x80u}) {
      const float x = sign == 0 ? numbers.back() : -numbers.back();
      EXPECT(cuda::narrow_fp8(x) == (byte | sign), "%f became %x, not %x", x, cuda::narrow_fp8(x), byte | sign);
    }
    uint32_t lo, hi;
    cuda::widen4<cuda::bf16>(byte | (byte | 0x80u) << 8 | 0x7f0000u | 0xff000000u, lo, hi);
    EXPECT(cuda::unpack2<cuda::bf16>(lo).x == numbers.back() && cuda::unpack2<cuda::bf16>(lo).y == -numbers.back());
    EXPECT(std::isnan(cuda::unpack2<cuda::bf16>(hi).x) && std::isnan(cuda::unpack2<cuda::bf16>(hi).y));
  }
  EXPECT(numbers[1] == std::ldexp(1.0f, -9) && numbers[8] == std::ldexp(1.0f, -6) && numbers.back() == 448,
         "the format");
  for (size_t i = 0; i + 1 < numbers.size(); ++i) {
    const float middle = (numbers[i] + numbers[i + 1]) / 2;
    const auto even = static_cast<uint32_t>(i + i % 2);
    EXPECT(cuda::narrow_fp8(middle) == even, "a tie goes to the even neighbour");
    EXPECT(cuda::narrow_fp8(std::nextafterf(middle, 0)) == i && cuda::narrow_fp8(std::nextafterf(middle, 1e9)) == i + 1,
           "beside a tie");
  }
  for (const float x : {448.0f, 464.0f, 480.0f, 1e30f, INFINITY})
    EXPECT(cuda::narrow_fp8(x) == 0x7e && cuda::narrow_fp8(-x) == 0xfe, "%f saturates", x);
  EXPECT((cuda::narrow_fp8(NAN) & 0x7f) == 0x7f, "NaN stays NaN");
}

// A row's bits must not depend on its place in the batch.
void test_rope_batch_invariance() {
  const RopeCase c{4, 2, 128, 128, 16, true, false};
  RopeFixture<cuda::bf16> all(c), one(c);
  cuda::rope_write_kv(all.params(), nullptr);
  for (int64_t t = 0; t < kTokens; ++t) {
    RopeWriteKvParams p = one.params();
    p.qkv = one.qkv.data() + t * one.qkv_stride;
    p.positions += t;
    p.slot_mapping += t;
    p.num_tokens = 1;
    cuda::rope_write_kv(p, nullptr);
  }
  EXPECT(all.qkv.bytes() == one.qkv.bytes() && all.k.bytes() == one.k.bytes() && all.v.bytes() == one.v.bytes());
}

void test_rope_errors() {
  RopeFixture<cuda::bf16> f({2, 1, 64, 64, 16, false, false});
  const auto error = [&](auto change) {
    RopeWriteKvParams p = f.params();
    change(p);
    return error_of([&] { cuda::rope_write_kv(p, nullptr); });
  };
  EXPECT(contains(error([](auto& p) { p.kv.head_dim = 40; }),
                  "rope_write_kv: head_dim must be a positive multiple of 16, got 40"));
  EXPECT(contains(error([](auto& p) { p.rotary_dim = 80; }),
                  "rotary_dim must be a positive multiple of 16 up to head_dim, got 80"));
  EXPECT(contains(error([](auto& p) { p.kv.block_size = 24; }), "block_size must be a power of two, got 24"));
  EXPECT(contains(error([](auto& p) { p.kv.dtype = DType::kF16; }), "must have qkv's dtype bf16 or f8e4m3, got f16"));
  EXPECT(contains(error([](auto& p) { p.kv.head_dim = 1024; }), "head_dim 1024 unsupported"));
  EXPECT(contains(error([](auto& p) { p.qkv_stride += 4; }), "qkv_stride must be a multiple of 16 bytes"));
  EXPECT(error([](auto& p) { p.num_tokens = 0; }).empty());
}

struct Geometry {
  int64_t parts, block_bytes, block_stride, part_stride;
};

void fill(Buffer<unsigned char>& b, uint64_t seed) {
  Random random(seed);
  for (int64_t i = 0; i < b.size(); ++i) b[i] = static_cast<unsigned char>(random.next());
}

void test_copy_blocks() {
  for (const Geometry& g :
       {Geometry{1, 16, 16, 0}, Geometry{4, 6144, 6144, 6144 * 9}, Geometry{3, 4112, 4160, 4160 * 8 + 64}}) {
    for_each_order([&] {
      constexpr int kNumBlocks = 8;
      Buffer<unsigned char> arena(g.parts == 1 ? g.block_stride * kNumBlocks : g.parts * g.part_stride);
      fill(arena, 3);
      std::vector<unsigned char> expected = arena.bytes();
      const std::vector<int32_t> pairs = {2, 5, 0, -1, 7, 0, 2, 1};
      for (int64_t part = 0; part < g.parts; ++part) {
        for (const auto& [src, dst] : {std::pair{2, 5}, {7, 0}, {2, 1}}) {
          const auto from = expected.begin() + part * g.part_stride + src * g.block_stride;
          std::copy_n(from, g.block_bytes, expected.begin() + part * g.part_stride + dst * g.block_stride);
        }
      }
      CopyBlocksParams p;
      p.arena = arena.data();
      p.num_parts = g.parts;
      p.part_stride_bytes = g.part_stride;
      p.block_stride_bytes = g.block_stride;
      p.block_bytes = g.block_bytes;
      p.pairs = pairs.data();
      p.num_pairs = 4;
      cuda::copy_blocks(p, nullptr);
      EXPECT(arena.bytes() == expected, "parts %ld block %ld", g.parts, g.block_bytes);
      EXPECT(arena.guards_intact());
    });
  }
  CopyBlocksParams p;
  p.block_bytes = 24;
  EXPECT(contains(error_of([&] { cuda::copy_blocks(p, nullptr); }),
                  "copy_blocks: sizes must be multiples of 16 bytes, got block 24"));
}

// Many short runs (more than one batch of copies), long runs, backward pairs; dense blocks and blocks with gaps.
void test_swap_blocks() {
  constexpr int kNumBlocks = 96;
  std::vector<int32_t> shuffled(kNumBlocks);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  Random random(4);
  for (int i = kNumBlocks - 1; i > 0; --i)
    std::swap(shuffled[static_cast<size_t>(i)], shuffled[static_cast<size_t>(random.below(i + 1))]);
  std::vector<std::vector<int32_t>> lists(4);
  for (int i = 0; i < kNumBlocks; ++i) {
    lists[0].insert(lists[0].end(), {i, kNumBlocks - 1 - i});
    lists[1].insert(lists[1].end(), {shuffled[static_cast<size_t>(i)], i});
    if (i < 40) lists[2].insert(lists[2].end(), {i < 20 ? i : i + 7, i + 11});
  }
  int stream_tag = 0;
  for (const int64_t gap : {0, 48}) {
    for (const auto& pairs : lists) {
      for (const Stream stream : {Stream{nullptr}, reinterpret_cast<Stream>(&stream_tag)}) {
        const int64_t bytes = 80, dst_block = bytes + gap, src_part = bytes * kNumBlocks,
                      dst_part = dst_block * kNumBlocks;
        Buffer<unsigned char> src(4 * src_part), dst(4 * dst_part);
        fill(src, 6);
        std::vector<unsigned char> expected = dst.bytes();
        for (int64_t part = 0; part < 4; ++part) {
          for (size_t i = 0; i < pairs.size(); i += 2) {
            std::copy_n(src.data() + part * src_part + pairs[i] * bytes, bytes,
                        expected.begin() + part * dst_part + pairs[i + 1] * dst_block);
          }
        }
        SwapBlocksParams p;
        p.dst = dst.data();
        p.src = src.data();
        p.num_parts = 4;
        p.block_bytes = p.src_block_stride_bytes = bytes;
        p.dst_part_stride_bytes = dst_part;
        p.dst_block_stride_bytes = dst_block;
        p.src_part_stride_bytes = src_part;
        p.pairs = pairs.data();
        p.num_pairs = static_cast<int64_t>(pairs.size() / 2);
        cuda::swap_blocks(p, stream);
        EXPECT(dst.bytes() == expected, "gap %ld, %zu pairs", gap, pairs.size() / 2);
        EXPECT(dst.guards_intact());
      }
    }
  }
}

}  // namespace
}  // namespace pe::test

int main() {
  pe::test::test_fp8();
  pe::test::test_rope();
  pe::test::test_rope_batch_invariance();
  pe::test::test_rope_errors();
  pe::test::test_copy_blocks();
  pe::test::test_swap_blocks();
  return pe::test::report("kv_cache");
}
