// SPDX-License-Identifier: Apache-2.0
// Attention in bf16 with fp32 sums, on pairs of neighbouring bf16 elements: what vdpbf16ps and the AMX tiles multiply.
//
// K of a tile becomes pairs along head_dim for 16 keys per line, V pairs along keys for 16 elements of head_dim per
// line; 16 lines are 1 KiB, an AMX tile. Weights are rounded to bf16 before they meet V (as on a GPU), their sum is
// not.
#pragma once
#include "paged_attention_kernel.h"

namespace pe::cpu {
namespace {

constexpr int64_t kPairsPerTile = 16;   // along the summed dimension: 32 elements
constexpr int64_t kPairTile = 16 * 16;  // pairs

// out[rows][16 * n_tiles] = a[rows][k_tiles * 16 pairs] * b[k_tiles][b_tiles][16 pairs][16], of b the first n_tiles of
// each k. All 16 rows of `a` are readable and all 16 of `out` writable, whatever `rows`.
struct PairProduct {
  const uint32_t* a = nullptr;
  int64_t a_stride = 0;  // pairs
  int64_t rows = 0;
  const uint32_t* b = nullptr;
  int64_t k_tiles = 0, n_tiles = 0, b_tiles = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// lines[i] = pair i of 16 rows. Quarters of four rows are put side by side as they are loaded, so that only the
// transposition inside each quarter is left: half the shuffles of one on whole registers.
PE_INLINE void transpose_pairs(const BF16* rows, int64_t stride, uint32_t* lines) {
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const auto* x = reinterpret_cast<const __m128i*>(rows + i * stride) + quarter;
      const int64_t step = 4 * stride / 8;  // four rows on, in units of *x
      r[i] = _mm512_castsi128_si512(_mm_loadu_si128(x));
      r[i] = _mm512_inserti32x4(r[i], _mm_loadu_si128(x + step), 1);
      r[i] = _mm512_inserti32x4(r[i], _mm_loadu_si128(x + 2 * step), 2);
      r[i] = _mm512_inserti32x4(r[i], _mm_loadu_si128(x + 3 * step), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    uint32_t* line = lines + quarter * 64;
    _mm512_storeu_si512(line, _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(line + 16, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(line + 32, _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(line + 48, _mm512_unpackhi_epi64(b, d));
  }
}

// One run of 16 keys: key tile `run` of every 32 elements of head_dim.
PE_INLINE void stage_keys(const BF16* k, int64_t token_stride, int64_t dim, int64_t run, uint32_t* tiles) {
  for (int64_t d = 0; d < dim; d += 32) {
    transpose_pairs(k + d, token_stride, tiles + (d / 32 * kRunsPerTile + run) * kPairTile);
  }
}

PE_INLINE __m512i values_or_zero(const BF16* row, bool wanted) {
  return wanted ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
}

// One run of 16 values; a key outside [begin, end) counts as zero.
PE_INLINE void stage_values(const BF16* v, int64_t token_stride, int64_t dim, const KeyTile& keys, int64_t run,
                            uint32_t* tiles) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                           37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                           11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first_half = _mm512_load_si512(kInterleave);
  const __m512i second_half = _mm512_add_epi16(first_half, _mm512_set1_epi16(16));
  const int64_t lane = run * kRunTokens;
  uint32_t* lines = tiles + lane / 32 * (dim / 16) * kPairTile + lane % 32 / 2 * 16;
  for (int64_t i = 0; i < kRunTokens; i += 2) {
    const bool even = lane + i >= keys.begin && lane + i < keys.end;
    const bool odd = lane + i + 1 >= keys.begin && lane + i + 1 < keys.end;
    const BF16* row = v + i * token_stride;
    for (int64_t d = 0; d < dim; d += 32) {
      const __m512i x = values_or_zero(row + d, even), y = values_or_zero(row + token_stride + d, odd);
      uint32_t* line = lines + d / 16 * kPairTile + i / 2 * 16;
      _mm512_storeu_si512(line, _mm512_permutex2var_epi16(x, first_half, y));
      _mm512_storeu_si512(line + kPairTile, _mm512_permutex2var_epi16(x, second_half, y));
    }
  }
}

// e4m3 to bf16 by a table of the 128 magnitudes, 32 elements at a time: through fp32 it would be four times the
// instructions (measured: decode three times slower).
class WidenBytes {
  struct Magnitudes {
    alignas(64) uint16_t bits[128];
    Magnitudes() {
      for (int i = 0; i < 128; ++i) {
        BF16 wide;
        from_float(to_float(F8{static_cast<uint8_t>(i)}), &wide);
        bits[i] = wide.bits;
      }
    }
  };

 public:
  PE_MEMBER WidenBytes() {
    static const Magnitudes magnitudes;
    for (int i = 0; i < 4; ++i) table_[i] = _mm512_load_si512(magnitudes.bits + 32 * i);
  }
  PE_MEMBER void operator()(const F8* from, BF16* to) const {
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i low = _mm512_permutex2var_epi16(table_[0], x, table_[1]);  // by the lower 6 bits
    const __m512i high = _mm512_permutex2var_epi16(table_[2], x, table_[3]);
    const __m512i rest = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(x, _mm512_set1_epi16(0x40)), low, high);
    const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(x, 8), _mm512_set1_epi16(static_cast<short>(0x8000)));
    _mm512_store_si512(to, _mm512_or_si512(rest, sign));
  }

 private:
  __m512i table_[4];
};

// The rows of a run, as open_run gives them.
template <typename Stored>
struct RunOpener {
  PE_MEMBER RunRows<BF16> operator()(const PagedAttentionParams& p, const void* cache, int64_t offset,
                                     BF16* buffer) const {
    return open_run<BF16, Stored>(p, cache, offset, buffer);
  }
};
template <>
struct RunOpener<F8> {
  PE_MEMBER RunRows<BF16> operator()(const PagedAttentionParams& p, const void* cache, int64_t offset,
                                     BF16* buffer) const {
    const F8* rows = static_cast<const F8*>(cache) + offset;
    for (int64_t i = 0; i < kRunTokens; ++i) {
      for (int64_t d = 0; d < p.kv.head_dim; d += 32) widen(rows + i * p.kv.token_stride + d, buffer + i * kMaxDim + d);
    }
    return {buffer, kMaxDim};
  }
  WidenBytes widen;
};

PE_INLINE void round_weights(const float* s, int64_t rows, uint32_t* weights) {
  for (int64_t i = 0; i < rows * kTileTokens; i += 32) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_load_ps(s + i + 16), _mm512_load_ps(s + i));
    _mm512_storeu_si512(weights + i / 2, reinterpret_cast<__m512i>(pairs));
  }
}

// The Math of bf16 with head_dim a multiple of 32. Engine: Session, and multiply(PairProduct). Stored: of the cache.
template <typename Engine, typename Stored>
struct Pairs {
  using Element = BF16;
  using Session = typename Engine::Session;
  static constexpr int64_t kRows = kBlockRows;
  static constexpr int64_t query_floats(int64_t dim) { return dim / 2; }

  static void load_queries(const PagedAttentionParams& p, const QueryTile& tile, float* q) {
    const int64_t rows = tile.num_queries * group_of(p), dim = p.kv.head_dim;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(q + r * dim / 2, query_row<BF16>(p, tile, r), sizeof(BF16) * dim);
  }

  static void stage(const PagedAttentionParams& p, const QueryTile& tile, const KeyTile& keys, float* k, float* v) {
    const KeyRuns runs = runs_of(p, tile, keys), upcoming = upcoming_runs(p, tile, keys);
    auto* key_tiles = reinterpret_cast<uint32_t*>(k);
    auto* value_tiles = reinterpret_cast<uint32_t*>(v);
    alignas(64) BF16 buffer[kRunTokens * kMaxDim];
    const RunOpener<Stored> open;
    for (int64_t r = 0; r < kRunsPerTile; ++r) {
      prefetch_run<Stored>(p, upcoming, r);
      RunRows<BF16> run;  // of a run without keys none is read
      if (r >= runs.first && r < runs.end) {
        run = open(p, p.kv.k, runs.offset[r], buffer);
        stage_keys(run.rows, run.stride, p.kv.head_dim, r, key_tiles);
        run = open(p, p.kv.v, runs.offset[r], buffer);
      }
      stage_values(run.rows, run.stride, p.kv.head_dim, keys, r, value_tiles);
    }
  }

  static void attend(const RowBlock& block) {
    alignas(64) float s[kRows * kTileTokens];
    alignas(64) uint32_t weights[kRows * kTileTokens / 2];
    alignas(64) float decay[kRows] = {};
    alignas(64) float added[kRows * kMaxDim];
    const int64_t dim = block.dim, padded = padded_dim(dim), end = block.end_key();
    PairProduct scores;
    scores.a = reinterpret_cast<const uint32_t*>(block.q), scores.a_stride = dim / 2, scores.rows = block.rows;
    scores.b = reinterpret_cast<const uint32_t*>(block.k), scores.k_tiles = dim / 32;
    scores.n_tiles = div_ceil<int64_t>(end, 16), scores.b_tiles = kRunsPerTile;
    scores.out = s, scores.out_stride = kTileTokens;
    Engine::multiply(scores);
    soften_rows(block, s, decay);
    round_weights(s, block.rows, weights);
    PairProduct values;
    values.a = weights, values.a_stride = kTileTokens / 2, values.rows = block.rows;
    values.b = reinterpret_cast<const uint32_t*>(block.v), values.k_tiles = div_ceil<int64_t>(end, 32);
    values.n_tiles = values.b_tiles = dim / 16;
    values.out = added, values.out_stride = dim;
    Engine::multiply(values);
    for (int64_t r = 0; r < block.rows; ++r) {
      const Float factor = Float::splat(decay[r]);
      float* acc = block.state.acc + r * padded;
      for (int64_t d = 0; d < dim; d += kWidth)
        fma(Float::load(acc + d), factor, Float::load(added + r * dim + d)).store(acc + d);
    }
  }
};

template <typename Engine>
PE_INLINE const AttentionKernel& pairs_kernel(DType stored) {
  return stored == DType::kF8E4M3 ? kKernel<Pairs<Engine, F8>> : kKernel<Pairs<Engine, BF16>>;
}

}  // namespace
}  // namespace pe::cpu
