// SPDX-License-Identifier: Apache-2.0
// rms_norm, silu_mul and embedding under the emulator against double-precision loops.
#include "harness.h"
#include "pe/activation.h"
#include "pe/linear.h"
#include "pe/norm.h"

namespace pe::test {
namespace {

using cuda::from_float;
using cuda::to_float;

struct NormCase {
  int64_t rows, cols, padding;  // padding: elements between rows, which nobody may touch
  bool residual, in_place;
};

template <typename T>
void run_norm(const NormCase& c, std::vector<unsigned char>* bits) {
  Random random(static_cast<uint64_t>(c.rows * 131 + c.cols));
  const int64_t stride = c.cols + c.padding;
  Buffer<T> x(c.rows * stride), residual(c.rows * stride), out(c.rows * stride), weight(c.cols);
  for (int64_t i = 0; i < c.cols; ++i) weight[i] = from_float<T>(1.0f + 0.5f * random.uniform());
  std::vector<double> expected_out, expected_residual;
  for (int64_t r = 0; r < c.rows; ++r) {
    double squares = 0;
    std::vector<double> row;
    for (int64_t i = 0; i < c.cols; ++i) {
      x[r * stride + i] = from_float<T>(3 * random.uniform());
      residual[r * stride + i] = from_float<T>(random.uniform());
      double value = to_float(x[r * stride + i]);
      if (c.residual) value = to_float(from_float<T>(static_cast<float>(value) + to_float(residual[r * stride + i])));
      squares += value * value;
      row.push_back(value);
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(c.cols) + 1e-5);
    for (int64_t i = 0; i < c.cols; ++i) {
      expected_residual.push_back(row[static_cast<size_t>(i)]);
      expected_out.push_back(row[static_cast<size_t>(i)] * scale * to_float(weight[i]));
    }
  }
  T* out_data = c.in_place ? x.data() : out.data();
  RmsNormParams p;
  p.out = out_data;
  p.x = x.data();
  p.residual = c.residual ? residual.data() : nullptr;
  p.weight = weight.data();
  p.rows = c.rows;
  p.cols = c.cols;
  p.out_stride = p.x_stride = p.residual_stride = stride;
  p.eps = 1e-5f;
  p.dtype = dtype_of<T>();
  cuda::rms_norm(p, nullptr);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t i = 0; i < c.cols; ++i) {
      const auto at = static_cast<size_t>(r * c.cols + i);
      EXPECT(close(out_data[r * stride + i], expected_out[at]), "%s rows %ld cols %ld at (%ld, %ld): %f not %f",
             name_of(p.dtype), c.rows, c.cols, r, i, to_float(out_data[r * stride + i]), expected_out[at]);
      if (c.residual) EXPECT(to_float(residual[r * stride + i]) == expected_residual[at], "at (%ld, %ld)", r, i);
    }
    EXPECT(out.untouched(r * stride + c.cols, c.padding) && residual.untouched(r * stride + c.cols, c.padding));
  }
  EXPECT(out.guards_intact() && residual.guards_intact() && x.guards_intact());
  const auto* first = reinterpret_cast<unsigned char*>(out_data);
  const std::vector<unsigned char> row0(first, first + static_cast<size_t>(c.cols) * sizeof(T));
  if (bits->empty()) *bits = row0;
  EXPECT(*bits == row0, "row 0 depends on the order of threads");
}

void test_rms_norm() {
  const NormCase cases[] = {
      {1, 8, 0, false, false},   {5, 64, 8, true, false},    {9, 576, 0, true, false},   {3, 576, 16, false, true},
      {2, 1032, 8, true, false}, {2, 2048, 0, false, false}, {2, 4096, 24, true, true},  {1, 5120, 0, true, false},
      {1, 8192, 0, true, false}, {1, 14336, 0, false, true}, {1, 16384, 0, true, false},
  };
  for_each_dtype([&](auto t) {
    for (const NormCase& c : cases) {
      std::vector<unsigned char> bits;
      for_each_order([&] { run_norm<decltype(t)>(c, &bits); });
    }
  });
}

// The bits of a row must not depend on how many rows there are or on where the row stands.
void test_rms_norm_batch_invariance() {
  constexpr int64_t kRows = 7;
  for (const int64_t cols : {576, 4096}) {
    Random random(5);
    Buffer<cuda::bf16> x(kRows * cols), weight(cols), all(kRows * cols), one(cols);
    for (int64_t i = 0; i < cols; ++i) weight[i] = from_float<cuda::bf16>(random.uniform());
    for (int64_t i = 0; i < kRows * cols; ++i) x[i] = from_float<cuda::bf16>(random.uniform());
    RmsNormParams p{all.data(), x.data(), nullptr, weight.data(), kRows, cols, cols, cols, cols, 1e-6f, DType::kBF16};
    cuda::rms_norm(p, nullptr);
    for (int64_t r = 0; r < kRows; ++r) {
      RmsNormParams single = p;
      single.out = one.data();
      single.x = x.data() + r * cols;
      single.rows = 1;
      cuda::rms_norm(single, nullptr);
      EXPECT(std::memcmp(one.data(), all.data() + r * cols, static_cast<size_t>(cols) * 2) == 0, "row %ld", r);
    }
  }
}

void test_rms_norm_errors() {
  Buffer<float> x(64);
  RmsNormParams p{x.data(), x.data(), nullptr, x.data(), 1, 12, 16, 16, 0, 1e-6f, DType::kF32};
  EXPECT(contains(error_of([&] { cuda::rms_norm(p, nullptr); }),
                  "rms_norm: cols must be a positive multiple of 8, got 12"));
  p.cols = 16;
  p.x_stride = 18;
  EXPECT(contains(error_of([&] { cuda::rms_norm(p, nullptr); }), "x_stride must be a multiple of 16 bytes, got 18"));
  p.x_stride = 16;
  p.x = x.data() + 1;
  EXPECT(contains(error_of([&] { cuda::rms_norm(p, nullptr); }), "x must be 16-byte aligned"));
  p.x = x.data();
  p.cols = p.x_stride = p.out_stride = 1 << 15;
  EXPECT(contains(error_of([&] { cuda::rms_norm(p, nullptr); }), "4096 vectors"));
  p.cols = p.x_stride = p.out_stride = 16;
  p.rows = 0;
  p.out = nullptr;
  p.x = p.weight = nullptr;
  EXPECT(error_of([&] { cuda::rms_norm(p, nullptr); }).empty(), "no rows is no work");
}

template <typename T>
void run_silu_mul(int64_t rows, int64_t cols, int64_t padding) {
  Random random(static_cast<uint64_t>(rows + cols));
  const int64_t in_stride = 2 * cols + padding, out_stride = cols + padding;
  Buffer<T> x(rows * in_stride), out(rows * out_stride);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < 2 * cols; ++i) x[r * in_stride + i] = from_float<T>(8 * random.uniform());
    x[r * in_stride] = from_float<T>(-200.0f);  // e^200 is not a float
    x[r * in_stride + 1] = from_float<T>(200.0f);
    x[r * in_stride + 2] = from_float<T>(-87.5f);
  }
  cuda::silu_mul({out.data(), x.data(), rows, cols, out_stride, in_stride, dtype_of<T>()}, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) {
      const double gate = to_float(x[r * in_stride + i]), up = to_float(x[r * in_stride + cols + i]);
      const double expected = gate / (1 + std::exp(-gate)) * up;
      EXPECT(close(out[r * out_stride + i], expected), "%s (%ld, %ld): %f not %f", name_of(dtype_of<T>()), r, i,
             to_float(out[r * out_stride + i]), expected);
    }
    EXPECT(out.untouched(r * out_stride + cols, padding));
  }
  EXPECT(out.guards_intact());
}

void test_silu_mul() {
  for_each_dtype([](auto t) {
    using T = decltype(t);
    for_each_order([] {
      run_silu_mul<T>(1, 8, 0);
      run_silu_mul<T>(3, 1536, 8);
      run_silu_mul<T>(2, 4104, 16);
    });
  });
  EXPECT(contains(error_of([] { cuda::silu_mul({nullptr, nullptr, 1, 4, 4, 8, DType::kF32}, nullptr); }),
                  "silu_mul: cols"));
}

template <typename T>
void run_embedding(int64_t dim, int64_t padding) {
  constexpr int64_t kVocab = 11;
  const std::vector<int32_t> ids = {3, 0, 10, 11, -1, 2147483647, 3, -2147483647 - 1};
  const auto n = static_cast<int64_t>(ids.size());
  Random random(9);
  Buffer<T> table(kVocab * dim), out(n * (dim + padding));
  for (int64_t i = 0; i < kVocab * dim; ++i) table[i] = from_float<T>(random.uniform());
  cuda::embedding({out.data(), ids.data(), table.data(), n, kVocab, dim, dim + padding, dtype_of<T>()}, nullptr);
  for (int64_t t = 0; t < n; ++t) {
    const int32_t id = ids[static_cast<size_t>(t)];
    for (int64_t i = 0; i < dim; ++i) {
      const float expected = id >= 0 && id < kVocab ? to_float(table[id * dim + i]) : 0.0f;
      EXPECT(to_float(out[t * (dim + padding) + i]) == expected, "token %ld element %ld", t, i);
    }
    EXPECT(out.untouched(t * (dim + padding) + dim, padding));
  }
  EXPECT(out.guards_intact());
}

void test_embedding() {
  for_each_dtype([](auto t) {
    using T = decltype(t);
    for_each_order([] {
      run_embedding<T>(8, 0);
      run_embedding<T>(576, 8);
      run_embedding<T>(4104, 16);
    });
  });
  EXPECT(contains(error_of([] { cuda::embedding({nullptr, nullptr, nullptr, 1, 1, 6, 8, DType::kBF16}, nullptr); }),
                  "embedding: a row"));
}

}  // namespace
}  // namespace pe::test

int main() {
  pe::test::test_rms_norm();
  pe::test::test_rms_norm_batch_invariance();
  pe::test::test_rms_norm_errors();
  pe::test::test_silu_mul();
  pe::test::test_embedding();
  return pe::test::report("elementwise");
}
