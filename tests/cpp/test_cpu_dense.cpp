// SPDX-License-Identifier: Apache-2.0
// Dense CPU ops against loops in double precision, on every instruction set of the machine; batch invariance bit for
// bit; thread pool and recorder. Exit code 0 when all holds.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pe/activation.h"
#include "pe/linear.h"
#include "pe/linear_silu_mul.h"
#include "pe/norm.h"
#include "pe/parallel.h"

namespace {

using namespace pe;

int num_failures = 0, num_checks = 0;

#define EXPECT(condition, ...)                                    \
  do {                                                            \
    ++num_checks;                                                 \
    if (!(condition) && ++num_failures <= 50) {                   \
      std::printf("%s:%d: %s; ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

template <typename F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// --- numbers of any dtype -------------------------------------------------------------------------------------------

float widen_f16(uint16_t h) {
  const int exponent = h >> 10 & 31;
  const double mantissa = h & 1023, sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : static_cast<float>(sign * INFINITY);
  return static_cast<float>(sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24)));
}

float get(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(p)[i];
  const uint16_t half = static_cast<const uint16_t*>(p)[i];
  if (dtype == DType::kF16) return widen_f16(half);
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Truncates to the dtype, so that tests need no rounding of their own.
void put(void* p, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    static_cast<float*>(p)[i] = x;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t half = bits >> 16;
  if (dtype == DType::kF16) {  // normal numbers only: smaller ones become zero
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    half = exponent <= 0 ? 0 : (bits >> 16 & 0x8000) | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 1023);
  }
  static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(half);
}

// Spacing of the representable numbers around x, relative to x at most.
double epsilon(DType dtype) { return dtype == DType::kF32 ? 0x1p-23 : dtype == DType::kF16 ? 0x1p-10 : 0x1p-7; }

constexpr int64_t kGuard = 64;  // elements in front and behind, that nobody may touch

// A matrix with strided rows; the gaps and the guards hold NaN.
struct Matrix {
  DType dtype;
  int64_t rows, cols, stride;
  std::vector<unsigned char> bytes;

  Matrix(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0)
      : dtype(dtype),
        rows(rows),
        cols(cols),
        stride(cols + gap),
        bytes((rows * stride + 2 * kGuard) * size_of(dtype), 0xff) {}

  void* data() { return bytes.data() + kGuard * size_of(dtype); }
  const void* data() const { return bytes.data() + kGuard * size_of(dtype); }
  float at(int64_t r, int64_t c) const { return get(data(), dtype, r * stride + c); }
  Matrix& randomise(uint32_t seed, float scale = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, scale);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) put(data(), dtype, r * stride + c, normal(random));
    }
    return *this;
  }
  bool untouched_outside() const {
    const size_t e = size_of(dtype);
    for (int64_t i = -kGuard; i < rows * stride + kGuard; ++i) {
      if (i >= 0 && i < rows * stride && i % stride < cols) continue;
      for (size_t b = 0; b < e; ++b) {
        if (bytes[(i + kGuard) * e + b] != 0xff) return false;
      }
    }
    return true;
  }
  bool same_row(int64_t r, const Matrix& other, int64_t other_row) const {
    const size_t e = size_of(dtype);
    return std::memcmp(static_cast<const char*>(data()) + r * stride * e,
                       static_cast<const char*>(other.data()) + other_row * other.stride * e, cols * e) == 0;
  }
};

std::vector<unsigned char> pack(const Matrix& weight) {
  std::vector<unsigned char> packed(cpu::packed_bytes(weight.rows, weight.cols, weight.dtype) + 64, 0xee);
  cpu::pack_weight({packed.data(), weight.data(), weight.rows, weight.cols, weight.stride, weight.dtype});
  return packed;
}

LinearParams linear_params(Matrix& out, const Matrix& x, const void* weight, const Matrix* bias) {
  LinearParams p;
  p.out = out.data();
  p.x = x.data();
  p.weight = weight;
  p.bias = bias ? bias->data() : nullptr;
  p.m = x.rows;
  p.n = out.cols;
  p.k = x.cols;
  p.out_stride = out.stride;
  p.x_stride = x.stride;
  p.dtype = x.dtype;
  p.out_dtype = out.dtype;
  return p;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* name : {"generic", "avx2", "avx512bf16", "amx"}) {
    if (error_of([&] { cpu::set_isa(name); }).empty()) names.push_back(name);
  }
  return names;
}

// --- linear ---------------------------------------------------------------------------------------------------------

struct LinearCase {
  DType dtype, out_dtype;
  int64_t m, n, k;
  bool bias;
};

void test_linear_case(const LinearCase& c) {
  const Matrix x = Matrix(c.dtype, c.m, c.k, 24).randomise(1);
  const Matrix weight = Matrix(c.dtype, c.n, c.k, 8).randomise(2);
  const Matrix bias = Matrix(c.dtype, 1, c.n).randomise(3);
  Matrix out(c.out_dtype, c.m, c.n, 5);
  const auto packed = pack(weight);
  cpu::linear(linear_params(out, x, packed.data(), c.bias ? &bias : nullptr));
  EXPECT(out.untouched_outside(), "%s m %d n %d k %d", cpu::isa(), int(c.m), int(c.n), int(c.k));
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t f = 0; f < c.n; ++f) {
      double sum = c.bias ? bias.at(0, f) : 0, magnitude = std::fabs(sum);
      for (int64_t i = 0; i < c.k; ++i) {
        const double product = double(x.at(r, i)) * weight.at(f, i);
        sum += product;
        magnitude += std::fabs(product);
      }
      // Half a unit of the output, and fp32 additions whose errors grow at worst like k, in practice like its root.
      const double bound =
          std::fabs(sum) * epsilon(c.out_dtype) / 2 + magnitude * 0x1p-24 * (4 + std::sqrt(double(c.k)));
      EXPECT(std::fabs(out.at(r, f) - sum) <= bound, "%s %s->%s [%d, %d] m %d n %d k %d: %g, expected %g +- %g",
             cpu::isa(), name_of(c.dtype), name_of(c.out_dtype), int(r), int(f), int(c.m), int(c.n), int(c.k),
             out.at(r, f), sum, bound);
    }
  }
}

void test_linear() {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (int64_t m = 1; m <= 33; ++m) test_linear_case({dtype, dtype, m, m % 3 ? 75 : 64, 96, m % 2 == 0});
    for (const int64_t n : {1, 15, 16, 17, 31, 33, 130}) test_linear_case({dtype, DType::kF32, 5, n, 32, n % 2 == 0});
    test_linear_case({dtype, dtype, 100, 200, 576, true});
    test_linear_case({dtype, DType::kF32, 67, 300, 4128, false});  // k in several blocks
    test_linear_case({dtype, DType::kF32, 0, 16, 32, false});
  }
  test_linear_case({DType::kF32, DType::kF32, 7, 20, 40, true});  // k a multiple of 8 only
}

// Sums half way between two bf16 go to the even one; infinities and NaN stay what they are.
void test_linear_rounding() {
  struct {
    float a, b, expected;
  } const cases[] = {{1, 0x1p-8f, 1},
                     {1 + 0x1p-7f, 0x1p-8f, 1 + 0x1p-6f},
                     {-1, -0x1p-8f, -1},
                     {1, 0x1.02p-8f, 1 + 0x1p-7f},
                     {INFINITY, 1, INFINITY},
                     {INFINITY, -INFINITY, NAN},
                     {0x1.fep127f, 0x1.fep127f, INFINITY}};
  const Matrix weight = [] {
    Matrix w(DType::kBF16, 20, 32);
    for (int64_t i = 0; i < 20 * 32; ++i) put(w.data(), DType::kBF16, i, i % 32 < 2 ? 1 : 0);
    return w;
  }();
  const auto packed = pack(weight);
  for (const auto& c : cases) {
    Matrix x(DType::kBF16, 1, 32), out(DType::kBF16, 1, 20);
    for (int64_t i = 0; i < 32; ++i) put(x.data(), DType::kBF16, i, i == 0 ? c.a : i == 1 ? c.b : 0);
    cpu::linear(linear_params(out, x, packed.data(), nullptr));
    for (const int64_t f : {0, 19}) {  // a whole panel and a partial one
      const float got = out.at(0, f);
      EXPECT(got == c.expected || (std::isnan(got) && std::isnan(c.expected)), "%s %a + %a = %a, expected %a",
             cpu::isa(), c.a, c.b, got, c.expected);
    }
  }
}

// Row r of a batch of any size, alone or in company, on one thread or several, has the same bits.
void test_batch_invariance(DType dtype, int64_t n, int64_t k) {
  constexpr int64_t kMaxRows = 513;
  const Matrix x = Matrix(dtype, kMaxRows, k).randomise(4);
  const Matrix weight = Matrix(dtype, n, k).randomise(5);
  const auto packed = pack(weight);
  Matrix expected(DType::kF32, kMaxRows, n);
  cpu::set_num_threads(1);
  for (int64_t r = 0; r < kMaxRows; ++r) {
    LinearParams p = linear_params(expected, x, packed.data(), nullptr);
    p.m = 1;
    p.x = static_cast<const char*>(x.data()) + r * x.stride * size_of(dtype);
    p.out = static_cast<float*>(expected.data()) + r * expected.stride;
    cpu::linear(p);
  }
  for (const int threads : {1, 2, 5}) {
    cpu::set_num_threads(threads);
    for (const int64_t m : {1, 2, 3, 7, 16, 17, 64, 100, 513}) {
      Matrix out(DType::kF32, m, n);
      LinearParams p = linear_params(out, x, packed.data(), nullptr);
      p.m = m;
      const int64_t first = kMaxRows - m;  // not the rows that another m began with
      p.x = static_cast<const char*>(x.data()) + first * x.stride * size_of(dtype);
      cpu::linear(p);
      bool same = true;
      for (int64_t r = 0; r < m; ++r) same = same && out.same_row(r, expected, first + r);
      EXPECT(same, "%s %s m %d n %d k %d threads %d", cpu::isa(), name_of(dtype), int(m), int(n), int(k), threads);
    }
  }
  cpu::set_num_threads(2);
}

void test_linear_errors() {
  Matrix x(DType::kBF16, 2, 32), out(DType::kBF16, 2, 16), out_f16(DType::kF16, 2, 16);
  const auto packed = pack(Matrix(DType::kBF16, 16, 32).randomise(1));
  const auto call = [&](auto change) {
    LinearParams p = linear_params(out, x, packed.data(), nullptr);
    change(p);
    return error_of([&] { cpu::linear(p); });
  };
  EXPECT(call([](LinearParams&) {}).empty(), "a right call");
  const std::string f16 = call([](LinearParams& p) { p.dtype = p.out_dtype = DType::kF16; });
  EXPECT(f16.find("bfloat16") != std::string::npos, "%s", f16.c_str());
  EXPECT(!call([](LinearParams& p) { p.out_dtype = DType::kF16; }).empty(), "out_dtype");
  EXPECT(!call([](LinearParams& p) { p.k = 31; }).empty(), "k");
  EXPECT(!call([](LinearParams& p) { p.x = nullptr; }).empty(), "null x");
  EXPECT(!call([](LinearParams& p) { p.out_stride = 15; }).empty(), "out_stride");
  EXPECT(!error_of([&] { cpu::pack_weight({out.data(), x.data(), 2, 30, 32, DType::kBF16}); }).empty(), "pack k");
  EXPECT(!error_of([&] { cpu::set_isa("sse9"); }).empty(), "isa");
}

// --- packing and embedding ------------------------------------------------------------------------------------------

void test_embedding() {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const Matrix weight = Matrix(dtype, 37, 96, 3).randomise(6);
    const auto packed = pack(weight);
    EXPECT(packed[packed.size() - 64] == 0xee && packed[packed.size() - 1] == 0xee, "wrote past the packed weight");
    const std::vector<int32_t> ids = {0, 36, 15, 16, -1, 37, 1 << 30, 17, 0};
    Matrix out(dtype, static_cast<int64_t>(ids.size()), 96, 7);
    cpu::embedding({out.data(), ids.data(), packed.data(), out.rows, 37, 96, out.stride, dtype});
    EXPECT(out.untouched_outside(), "%s", name_of(dtype));
    for (int64_t t = 0; t < out.rows; ++t) {
      for (int64_t i = 0; i < 96; ++i) {
        const float expected = ids[t] >= 0 && ids[t] < 37 ? weight.at(ids[t], i) : 0;
        EXPECT(out.at(t, i) == expected, "%s token %d col %d: %g, expected %g", name_of(dtype), int(t), int(i),
               out.at(t, i), expected);
      }
    }
  }
}

// --- norm and activation --------------------------------------------------------------------------------------------

RmsNormParams norm_params(Matrix& out, const Matrix& x, Matrix* residual, const Matrix& weight, float eps) {
  RmsNormParams p;
  p.out = out.data();
  p.x = x.data();
  p.residual = residual ? residual->data() : nullptr;
  p.weight = weight.data();
  p.rows = x.rows;
  p.cols = x.cols;
  p.out_stride = out.stride;
  p.x_stride = x.stride;
  p.residual_stride = residual ? residual->stride : 0;
  p.eps = eps;
  p.dtype = x.dtype;
  return p;
}

void test_norm_case(DType dtype, int64_t rows, int64_t cols, bool with_residual) {
  const Matrix x = Matrix(dtype, rows, cols, 3).randomise(7);
  const Matrix weight = Matrix(dtype, 1, cols).randomise(8);
  const Matrix before = Matrix(dtype, rows, cols, 9).randomise(9);
  Matrix residual = before, out(dtype, rows, cols, 1);
  const float eps = 1e-5f;
  cpu::rms_norm(norm_params(out, x, with_residual ? &residual : nullptr, weight, eps));
  EXPECT(out.untouched_outside() && residual.untouched_outside(), "%s rows %d cols %d", name_of(dtype), int(rows),
         int(cols));
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const double sum = double(x.at(r, c)) + (with_residual ? before.at(r, c) : 0);
      if (with_residual) {
        EXPECT(std::fabs(residual.at(r, c) - sum) <= std::fabs(sum) * epsilon(dtype) / 2,
               "%s residual [%d, %d]: %g, expected %g", name_of(dtype), int(r), int(c), residual.at(r, c), sum);
      }
      const double value = with_residual ? residual.at(r, c) : x.at(r, c);
      squares += value * value;
    }
    const double scale = 1 / std::sqrt(squares / cols + eps);
    for (int64_t c = 0; c < cols; ++c) {
      const double expected = (with_residual ? residual.at(r, c) : x.at(r, c)) * scale * weight.at(0, c);
      const double bound = std::fabs(expected) * (epsilon(dtype) / 2 + 0x1p-20) + (dtype == DType::kF16 ? 0x1p-25 : 0);
      EXPECT(std::fabs(out.at(r, c) - expected) <= bound, "%s %s [%d, %d] of %d: %g, expected %g", cpu::isa(),
             name_of(dtype), int(r), int(c), int(cols), out.at(r, c), expected);
    }
  }
  Matrix aliased = x;
  Matrix residual_again = before;
  cpu::rms_norm(norm_params(aliased, aliased, with_residual ? &residual_again : nullptr, weight, eps));
  for (int64_t r = 0; r < rows; ++r) EXPECT(aliased.same_row(r, out, r), "out aliases x, row %d", int(r));
}

void test_silu_case(DType dtype, int64_t rows, int64_t cols) {
  Matrix gate_up = Matrix(dtype, rows, 2 * cols, 5).randomise(10, 4);
  if (rows > 1) {  // the ends of exp
    const float gates[] = {-200, -104, -90, -88, -20, 20, 90, 200};
    for (int i = 0; i < 8; ++i) {
      put(gate_up.data(), dtype, gate_up.stride + i, gates[i]);
      put(gate_up.data(), dtype, gate_up.stride + cols + i, 1);
    }
  }
  Matrix out(dtype, rows, cols, 2);
  cpu::silu_mul({out.data(), gate_up.data(), rows, cols, out.stride, gate_up.stride, dtype});
  EXPECT(out.untouched_outside(), "%s rows %d cols %d", name_of(dtype), int(rows), int(cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double gate = gate_up.at(r, c), expected = gate / (1 + std::exp(-gate)) * gate_up.at(r, cols + c);
      const double tiny = dtype == DType::kF16 ? 0x1p-25 : 0x1p-120;
      const double bound = std::fabs(expected) * (epsilon(dtype) / 2 + 0x1p-20) + tiny;
      EXPECT(std::fabs(out.at(r, c) - expected) <= bound, "%s %s silu(%g) * %g: %g, expected %g", cpu::isa(),
             name_of(dtype), gate, gate_up.at(r, cols + c), out.at(r, c), expected);
    }
  }
}

void test_elementwise() {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int64_t cols : {8, 16, 24, 40, 72, 576, 1536}) {
      for (const int64_t rows : {1, 3, 40}) {
        test_norm_case(dtype, rows, cols, false);
        test_norm_case(dtype, rows, cols, true);
        test_silu_case(dtype, rows, cols);
      }
    }
  }
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {  // half way goes to the even neighbour
    const float half = static_cast<float>(epsilon(dtype) / 2);
    Matrix x(dtype, 1, 24), residual(dtype, 1, 24), out(dtype, 1, 24);
    for (int64_t i = 0; i < 24; ++i) {
      put(x.data(), dtype, i, half);
      put(residual.data(), dtype, i, 1 + i % 2 * 2 * half);
    }
    cpu::rms_norm(norm_params(out, x, &residual, residual, 1e-6f));
    for (int64_t i = 0; i < 24; ++i) {
      const float expected = 1 + i % 2 * 4 * half;
      EXPECT(residual.at(0, i) == expected, "%s %s %d: %a, expected %a", cpu::isa(), name_of(dtype), int(i),
             residual.at(0, i), expected);
    }
  }
  Matrix x = Matrix(DType::kBF16, 2, 16).randomise(1), out(DType::kBF16, 2, 16);
  put(x.data(), DType::kBF16, 3, NAN);
  cpu::rms_norm(norm_params(out, x, nullptr, Matrix(DType::kBF16, 1, 16).randomise(2), 1e-6f));
  EXPECT(std::isnan(out.at(0, 0)) && !std::isnan(out.at(1, 0)), "%s: NaN stays in its row", cpu::isa());
  EXPECT(!error_of([&] { cpu::silu_mul({out.data(), x.data(), 2, 12, 16, 32, DType::kBF16}); }).empty(), "cols");
  EXPECT(!error_of([&] { cpu::silu_mul({out.data(), x.data(), 2, 8, 8, 15, DType::kBF16}); }).empty(), "stride");
}

// --- threads and programs -------------------------------------------------------------------------------------------

void test_parallel_for() {
  for (const int threads : {1, 2, 3, 5}) {
    cpu::set_num_threads(threads);
    EXPECT(cpu::num_threads() == threads, "%d", threads);
    for (const int64_t n : {0, 1, 2, 7, 64, 100}) {
      for (const int64_t grain : {1, 3, 16, 64}) {
        std::vector<int> hits(n);
        std::atomic<int> calls{0};
        std::atomic<bool> aligned{true};
        cpu::parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          ++calls;
          if (begin % grain != 0) aligned = false;
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        bool once = true;
        for (const int h : hits) once = once && h == 1;
        EXPECT(once && aligned && calls <= threads, "n %d grain %d threads %d calls %d", int(n), int(grain), threads,
               int(calls));
      }
    }
  }
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        cpu::parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
        if (i % 100 == 0)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));  // long enough for workers to sleep
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT(sum == 3 * 300 * 100, "%lld", static_cast<long long>(sum));
  const auto fail_last = [](int64_t, int64_t end) {
    if (end == 10) throw Error("from a worker");
  };
  EXPECT(error_of([&] { cpu::parallel_for(10, 1, fail_last); }) == "from a worker", "the error reaches the caller");
  std::atomic<int> nested{0};
  cpu::parallel_for(4, 1, [&](int64_t begin, int64_t end) {
    cpu::parallel_for(end - begin, 1, [&](int64_t b, int64_t e) { nested += static_cast<int>(e - b); });
  });
  EXPECT(nested == 4, "%d", int(nested));
  EXPECT(!error_of([] { cpu::set_num_threads(0); }).empty(), "0 threads");
  cpu::set_num_threads(2);
}

// The gated product has the bits of its two ops, alone and replayed, and says what is wrong before it writes.
void test_linear_silu_mul(DType dtype, int64_t m, int64_t cols, int64_t k) {
  Matrix x = Matrix(dtype, m, k, 8).randomise(21);
  const auto packed = pack(Matrix(dtype, 2 * cols, k).randomise(22));
  Matrix gate_up(dtype, m, 2 * cols, 5), scratch(dtype, m, 2 * cols, 3), expected(dtype, m, cols),
      out(dtype, m, cols, 7);
  const LinearSiluMulParams p{out.data(), scratch.data(), x.data(),       packed.data(), m,    cols,
                              k,          out.stride,     scratch.stride, x.stride,      dtype};
  cpu::Program program;
  cpu::begin_recording(&program);
  cpu::linear_silu_mul(p);
  cpu::end_recording();
  for (int round = 0; round < 2; ++round) {
    cpu::linear(linear_params(gate_up, x, packed.data(), nullptr));
    cpu::silu_mul({expected.data(), gate_up.data(), m, cols, expected.stride, gate_up.stride, dtype});
    bool same = true;
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < cols; ++c) same &= out.at(r, c) == expected.at(r, c);
    EXPECT(same, "%s m %d cols %d k %d, round %d", name_of(dtype), int(m), int(cols), int(k), round);
    EXPECT(out.untouched_outside() && scratch.untouched_outside(), "%s m %d cols %d", name_of(dtype), int(m),
           int(cols));
    x.randomise(23);
    program.replay();
  }
  LinearSiluMulParams wrong = p;
  wrong.cols = 12;
  EXPECT(!error_of([&] { cpu::linear_silu_mul(wrong); }).empty(), "cols");
  wrong = p, wrong.gate_up = nullptr;
  EXPECT(!error_of([&] { cpu::linear_silu_mul(wrong); }).empty(), "no scratch");
}

void test_program() {
  Matrix x = Matrix(DType::kBF16, 5, 64).randomise(11);
  const Matrix norm_weight = Matrix(DType::kBF16, 1, 64).randomise(12);
  const auto packed = pack(Matrix(DType::kBF16, 128, 64).randomise(13));
  Matrix normed(DType::kBF16, 5, 64), gate_up(DType::kBF16, 5, 128), out(DType::kBF16, 5, 64);
  const auto forward = [&] {
    cpu::rms_norm(norm_params(normed, x, nullptr, norm_weight, 1e-5f));
    cpu::linear(linear_params(gate_up, normed, packed.data(), nullptr));
    cpu::silu_mul({out.data(), gate_up.data(), 5, 64, out.stride, gate_up.stride, DType::kBF16});
  };
  cpu::Program program;
  cpu::begin_recording(&program);
  EXPECT(!error_of([&] { cpu::begin_recording(&program); }).empty(), "recording twice");
  forward();
  const Matrix while_recording = out;
  EXPECT(!error_of([&] { cpu::silu_mul({nullptr, nullptr, 1, 8, 8, 16, DType::kBF16}); }).empty(), "null");
  cpu::end_recording();
  EXPECT(!error_of([] { cpu::end_recording(); }).empty(), "ending twice");
  EXPECT(program.size() == 3, "%d ops", int(program.size()));
  forward();
  EXPECT(program.size() == 3, "an op after end_recording is not recorded");
  EXPECT(while_recording.bytes == out.bytes, "ops run while they are recorded");
  x.randomise(14);  // the program has pointers, not values
  forward();
  const Matrix expected = out;
  EXPECT(expected.bytes != while_recording.bytes, "new input, new output");
  std::fill(out.bytes.begin(), out.bytes.end(), static_cast<unsigned char>(0xff));
  program.replay();
  EXPECT(out.bytes == expected.bytes, "replay equals direct execution");
}

}  // namespace

int main() {
  const auto names = instruction_sets();
  cpu::set_num_threads(2);
  for (const auto& name : names) {
    cpu::set_isa(name);
    EXPECT(name == cpu::isa(), "%s", cpu::isa());
    test_linear();
    test_linear_rounding();
    test_batch_invariance(DType::kBF16, 75, 576);
    test_batch_invariance(DType::kBF16, 40, 4128);
    test_batch_invariance(DType::kF32, 75, 264);
    test_embedding();
    test_elementwise();
    test_linear_silu_mul(DType::kBF16, 5, 40, 96);
    test_linear_silu_mul(DType::kBF16, 33, 24, 576);
    test_linear_silu_mul(DType::kF32, 3, 104, 72);
    test_program();
    std::printf("%s: %d checks, %d failures so far\n", name.c_str(), num_checks, num_failures);
  }
  test_linear_errors();
  test_parallel_for();
  std::printf("%d checks, %d failures\n", num_checks, num_failures);
  return num_failures == 0 ? 0 : 1;
}
