// SPDX-License-Identifier: Apache-2.0
// Dense layer in plain C++, for machines without AVX2: the compiler vectorises the loops over 16 features.
#include "linear_blocked.h"

namespace pe::cpu {
namespace {

struct Generic {
  struct Sum {
    float feature[kPanelFeatures];
  };
  static constexpr int kMaxRows = 2;
  static constexpr int max_panels(int rows) { return 2 / rows; }
  static constexpr int64_t kRowsBytes = 128 << 10;
  static constexpr int64_t kPrefetchLines = 32;
  static constexpr int kStepBytes = 4;

  static Sum zero() { return {}; }
  static Sum load_sum(const float* p) {
    Sum s;
    std::memcpy(s.feature, p, sizeof s.feature);
    return s;
  }
  static void store_sum(float* p, const Sum& s) { std::memcpy(p, s.feature, sizeof s.feature); }
};

struct GenericBf16 : Generic {
  static constexpr int64_t kStepK = 2;
  struct Line {
    uint32_t lanes[kPanelFeatures];  // even k in the low half
  };
  struct Pair {
    float even, odd;
  };

  static Line load_line(const char* p) {
    Line line;
    std::memcpy(line.lanes, p, sizeof line.lanes);
    return line;
  }
  static Pair broadcast(const char* p) {
    Bf16 pair[2];
    std::memcpy(pair, p, sizeof pair);
    return {to_float(pair[0]), to_float(pair[1])};
  }
  static Sum multiply_add(Sum sum, Pair x, const Line& w) {
    for (int i = 0; i < kPanelFeatures; ++i) {
      sum.feature[i] += x.even * float_of(w.lanes[i] << 16);
      sum.feature[i] += x.odd * float_of(w.lanes[i] & 0xffff0000u);
    }
    return sum;
  }

  static void advance(const Block& b, int rows, int panels) { advance_vector<GenericBf16>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<PlainVector, Bf16>(p, row, feature, sums, count);
  }
};

struct GenericF32 : Generic {
  static constexpr int64_t kStepK = 1;
  using Line = Sum;
  using Pair = float;

  static Line load_line(const char* p) { return load_sum(reinterpret_cast<const float*>(p)); }
  static Pair broadcast(const char* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static Sum multiply_add(Sum sum, Pair x, const Line& w) {
    for (int i = 0; i < kPanelFeatures; ++i) sum.feature[i] += x * w.feature[i];
    return sum;
  }

  static void advance(const Block& b, int rows, int panels) { advance_vector<GenericF32>(b, rows, panels); }
  static void finish(const LinearParams& p, int64_t row, int64_t feature, const float* sums, int64_t count) {
    finish_row<PlainVector, float>(p, row, feature, sums, count);
  }
};

}  // namespace

void linear_generic_bf16(const LinearParams& p, const LinearTile& tile) { BlockedLinear<GenericBf16>(p, tile).run(); }
void linear_generic_f32(const LinearParams& p, const LinearTile& tile) { BlockedLinear<GenericF32>(p, tile).run(); }

}  // namespace pe::cpu
