// SPDX-License-Identifier: Apache-2.0
// Dense layer with AMX: up to 32 rows x 2 panels in four tiles of 16 x 16 sums.
//
// x is used where it lies: 16 rows x 32 k are one A tile; 16 lines of a packed panel are one B tile, 1 KiB in a row.
// tdpbf16ps handles each row of A by itself, so a block of fewer rows has the same bits; it only configures shorter
// tiles.
#include "linear_kernels.h"

#if defined(__x86_64__)
#include "linear_blocked.h"
#include "simd_avx512.h"

namespace pe::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileLines = 16;  // lines of the weight in a B tile: 32 k

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Tiles: sums 0 1 / 2 3 (upper rows, lower rows), x in 4 and 5, the weight in 6 and 7.
void configure_tiles(int rows) {
  TileConfig config;
  const uint8_t upper = static_cast<uint8_t>(at_most(rows, kTileRows));
  const uint8_t lower = static_cast<uint8_t>(at_least(rows - kTileRows, 1));  // unused tiles must exist too
  const uint8_t tile_rows[8] = {upper, upper, lower, lower, upper, lower, kTileLines, kTileLines};
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = tile_rows[i];
    config.row_bytes[i] = kLineBytes;
  }
  _tile_loadconfig(&config);
}

inline void prefetch_tile(const char* p) {
  for (int i = 0; i < kTileLines; ++i) _mm_prefetch(p + i * kLineBytes, _MM_HINT_T0);
}

template <bool kLower, bool kRight>
void load_sums(const Block& b) {
  const int64_t stride = b.sums_stride * static_cast<int64_t>(sizeof(float));
  _tile_loadd(0, b.sums, stride);
  if constexpr (kRight) _tile_loadd(1, b.sums + kPanelFeatures, stride);
  if constexpr (kLower) _tile_loadd(2, b.sums + kTileRows * b.sums_stride, stride);
  if constexpr (kLower && kRight) _tile_loadd(3, b.sums + kTileRows * b.sums_stride + kPanelFeatures, stride);
}

template <bool kLower, bool kRight>
void store_sums(const Block& b) {
  const int64_t stride = b.sums_stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, b.sums, stride);
  if constexpr (kRight) _tile_stored(1, b.sums + kPanelFeatures, stride);
  if constexpr (kLower) _tile_stored(2, b.sums + kTileRows * b.sums_stride, stride);
  if constexpr (kLower && kRight) _tile_stored(3, b.sums + kTileRows * b.sums_stride + kPanelFeatures, stride);
}

template <bool kLower, bool kRight, bool kPrefetch>
void walk(const Block& b, int64_t line_begin, int64_t line_end, int64_t prefetch) {
  for (int64_t line = line_begin; line < line_end; line += kTileLines) {
    const char* x = b.x + line * 4;
    const char* w = b.w + line * kLineBytes;
    _tile_loadd(4, x, b.x_stride);
    _tile_loadd(6, w, kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPrefetch) prefetch_tile(w + prefetch);
    if constexpr (kRight) {
      _tile_loadd(7, w + b.panel_bytes, kLineBytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kPrefetch) prefetch_tile(w + b.panel_bytes + prefetch);
    }
    if constexpr (kLower) {
      _tile_loadd(5, x + kTileRows * b.x_stride, b.x_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kLower && kRight) _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kLower, bool kRight>
void advance_tiles(const Block& b) {
  if (b.resume) {
    load_sums<kLower, kRight>(b);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  if (b.prefetch_near == 0) {
    walk<kLower, kRight, false>(b, 0, b.steps, 0);
  } else {
    walk<kLower, kRight, true>(b, 0, b.prefetch_turn, b.prefetch_near);
    walk<kLower, kRight, true>(b, b.prefetch_turn, b.steps, b.prefetch_far);
  }
  store_sums<kLower, kRight>(b);
}

class AmxBf16 {
 public:
  static constexpr int kMaxRows = 2 * kTileRows;
  static constexpr int max_panels(int) { return 2; }
  static constexpr int64_t kRowsBytes = 1 << 20;  // what has AMX has an L2 of 2 MiB
  static constexpr int64_t kStepK = 2;
  static constexpr int64_t kPrefetchLines = kTileLines;  // 1 KiB: farther is slower (17 GB/s a core, 14.5 at 4 KiB)

  ~AmxBf16() { _tile_release(); }

  void advance(const Block& b, int rows, int panels) {
    if (rows != configured_rows_) configure_tiles(rows);
    configured_rows_ = rows;
    if (rows > kTileRows) return panels > 1 ? advance_tiles<true, true>(b) : advance_tiles<true, false>(b);
    return panels > 1 ? advance_tiles<false, true>(b) : advance_tiles<false, false>(b);
  }
  void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) const {
    finish_row<Avx512Vector, Bf16>(p, row, feature, sums, count);
  }

 private:
  int configured_rows_ = 0;
};

}  // namespace

void linear_amx_bf16(const LinearParams& p, const LinearTile& tile) { BlockedLinear<AmxBf16>(p, tile).run(); }

}  // namespace pe::cpu
#endif
