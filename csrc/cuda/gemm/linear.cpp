// SPDX-License-Identifier: Apache-2.0
// linear on the GPU: y[m,n] = x[m,k] W[n,k]^T + b. Few rows on Hopper go to the weight-streaming kernel
// (stream_gemm.h), everything else through cuBLASLt, with algorithms that a row cannot tell apart.
//
// Both sum each output in fp32 over ascending k in steps of 16 and add the bias before the one rounding, and so agree
// to the bit (bench/kernels/bench_linear compares them): the choice between them may depend on m.
//
// cuBLASLt is column-major: y^T[n,m] = W (stored k x n, transposed) * x^T (stored k x m), so nothing is copied or
// transposed. Sums are fp32; fp32 inputs are multiplied in fp32 (no tf32); the bias is added in the epilogue before the
// one rounding.
//
// Batch invariance. What makes a row's bits depend on m is that another m may get another order of summation over k:
// split-K above all. So algorithms are asked for with no reduction scheme and no workspace to reduce through, and each
// one returned is checked for split-K 1. One algorithm is chosen per (n, k, dtypes, bias, alignment) and size class of
// m, by heuristics and never by timing, and kept. That two classes agree is an observation (every layer of anchors'
// models on an H100), not a promise of the library: bench/kernels/bench_linear counts the distinct results over many m,
// and a GPU where it counts more than one must use one class.
//
// Capture: choosing an algorithm is host work that a capturing stream does not like, so call once per shape and size
// class before capturing.
#include "pe/linear.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/common/tuning.h"
#include "cuda/gemm/cublaslt_api.h"
#include "cuda/gemm/stream_gemm.h"

namespace pe::cuda {
namespace {

namespace lt = cublaslt;

constexpr const char* kOp = "linear";

// Upper ends of the size classes of m. At most 256 rows a layer is bound by reading W and the tiles differ in how many
// rows they waste. Above, it is bound by arithmetic, and tiles that fill the SMs at one m leave half of them idle at
// another: 544 rows by the tiles of 1024 took 1.6 times their arithmetic. (A class to 448 got tiles that were twice as
// slow for llama's gate_up as those of 512.) The last class is represented by its upper end here but holds all larger
// m.
constexpr int64_t kClassEnds[] = {16, 64, 128, 256, 320, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096};

size_t class_of(int64_t m) {
  const auto end = std::lower_bound(std::begin(kClassEnds), std::end(kClassEnds), m);
  return std::min<size_t>(static_cast<size_t>(end - std::begin(kClassEnds)), std::size(kClassEnds) - 1);
}

void check_status(lt::Status status, const char* call) {
  PE_CHECK(kOp, status == 0, std::string(call) + " failed: " + lt::library().status_name(status));
}

// ---- descriptors, freed on leaving the scope ------------------------------------------------------------------------

class Layout {
 public:
  Layout(lt::DataType type, int64_t rows, int64_t cols, int64_t leading_dimension) {
    check_status(lt::library().layout_create(&value_, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                             leading_dimension),
                 "cublasLtMatrixLayoutCreate");
  }
  Layout(const Layout&) = delete;
  ~Layout() { lt::library().layout_destroy(value_); }
  operator lt::MatrixLayout() const { return value_; }

 private:
  lt::MatrixLayout value_ = nullptr;
};

class Preference {
 public:
  Preference() { check_status(lt::library().preference_create(&value_), "cublasLtMatmulPreferenceCreate"); }
  Preference(const Preference&) = delete;
  ~Preference() { lt::library().preference_destroy(value_); }
  template <typename T>
  void set(lt::PreferenceAttribute attribute, T value) {
    check_status(lt::library().preference_set(value_, attribute, &value, sizeof value),
                 "cublasLtMatmulPreferenceSetAttribute");
  }
  operator lt::Preference() const { return value_; }

 private:
  lt::Preference value_ = nullptr;
};

lt::DataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return lt::kR32F;
    case DType::kF16:
      return lt::kR16F;
    case DType::kBF16:
      return lt::kR16BF;
    case DType::kF8E4M3:
      break;  // of KV caches alone
  }
  throw_error(kOp, "unknown dtype " + std::to_string(static_cast<int>(dtype)) + " (have f32, f16, bf16)");
}

// The product as cuBLASLt sees it, for `m` rows: A = W, B = x, C = D = y.
class Problem {
 public:
  Problem(const LinearParams& p, int64_t m)
      : a(type_of(p.dtype), p.k, p.n, p.k),
        b(type_of(p.dtype), p.k, m, p.x_stride),
        d(type_of(p.out_dtype), p.n, m, p.out_stride) {
    check_status(lt::library().desc_create(&desc, lt::kCompute32F, lt::kR32F), "cublasLtMatmulDescCreate");
    set(lt::kDescTransA, lt::kTranspose);
    set(lt::kDescTransB, lt::kNone);
    if (p.bias == nullptr) return;
    set(lt::kDescEpilogue, lt::kEpilogueBias);
    set(lt::kDescBiasPointer, p.bias);
    set(lt::kDescBiasDataType, type_of(p.dtype));
  }
  Problem(const Problem&) = delete;
  ~Problem() { lt::library().desc_destroy(desc); }

  const Layout a, b, d;
  lt::MatmulDesc desc = nullptr;

 private:
  template <typename T>
  void set(lt::MatmulDescAttribute attribute, T value) {
    const lt::Status status = lt::library().desc_set(desc, attribute, &value, sizeof value);
    if (status == 0) return;
    lt::library().desc_destroy(desc);  // no destructor runs for a half-made object
    check_status(status, "cublasLtMatmulDescSetAttribute");
  }
};

// ---- choice of the algorithm ----------------------------------------------------------------------------------------

// The largest power of two up to 16 that divides both, in bytes: what a kernel may assume of every row.
uint32_t alignment_of(const void* p, int64_t stride, DType dtype) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(p) | static_cast<uint64_t>(stride) * size_of(dtype) | 16;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

struct Alignments {
  uint32_t weight, x, out;
};
Alignments alignments_of(const LinearParams& p) {
  return {alignment_of(p.weight, p.k, p.dtype), alignment_of(p.x, p.x_stride, p.dtype),
          alignment_of(p.out, p.out_stride, p.out_dtype)};
}

bool sums_in_one_piece(const lt::Algo& algo) {
  int32_t split_k = 0;
  uint32_t reduction = 0;
  size_t written = 0;
  const lt::Library& lib = lt::library();
  check_status(lib.algo_get(&algo, lt::kConfigSplitK, &split_k, sizeof split_k, &written), "reading split-K");
  check_status(lib.algo_get(&algo, lt::kConfigReductionScheme, &reduction, sizeof reduction, &written),
               "reading the reduction scheme");
  return (split_k == 0 || split_k == 1) && reduction == 0;
}

// Many algorithms of cuBLASLt 13 would like 4 bytes, for a counter of tiles, and run as well without. Nothing could be
// reduced through so little.
constexpr size_t kMostCounterBytes = 64;

bool runs(lt::Handle handle, const Problem& problem, const lt::Algo& algo) {
  lt::HeuristicResult result{};
  return lt::library().algo_check(handle, problem.desc, problem.a, problem.b, problem.d, problem.d, &algo, &result) ==
             0 &&
         result.workspace_bytes <= kMostCounterBytes;
}

// The first suggestion for the class's upper end that sums in one piece and also runs at the class's lower end. A
// benchmark may pass over some (tuning.h); the last one is taken where there are no more.
lt::Algo choose(lt::Handle handle, const LinearParams& p, size_t size_class) {
  const int64_t most = kClassEnds[size_class], least = size_class == 0 ? 1 : kClassEnds[size_class - 1] + 1;
  const Problem problem(p, most), smallest(p, least);
  const Alignments alignments = alignments_of(p);
  Preference preference;
  preference.set(lt::kPrefMaxWorkspaceBytes, uint64_t{0});
  preference.set(lt::kPrefReductionSchemeMask, uint32_t{0});
  preference.set(lt::kPrefMinAlignmentABytes, alignments.weight);
  preference.set(lt::kPrefMinAlignmentBBytes, alignments.x);
  preference.set(lt::kPrefMinAlignmentCBytes, alignments.out);
  preference.set(lt::kPrefMinAlignmentDBytes, alignments.out);
  constexpr int kWanted = 16;
  lt::HeuristicResult results[kWanted] = {};
  int num_found = 0;
  const lt::Status status = lt::library().heuristic(handle, problem.desc, problem.a, problem.b, problem.d, problem.d,
                                                    preference, kWanted, results, &num_found);
  const lt::Algo* chosen = nullptr;
  int64_t passed_over = tuning.suggestion;
  for (int i = 0; status == 0 && i < num_found && (chosen == nullptr || passed_over >= 0); ++i) {
    const lt::Algo& algo = results[i].algo;
    if (results[i].state != 0 || !sums_in_one_piece(algo) || !runs(handle, problem, algo) ||
        !runs(handle, smallest, algo))
      continue;
    chosen = &algo;
    --passed_over;
  }
  if (chosen != nullptr) return *chosen;
  throw_error(kOp, "cuBLASLt " + std::to_string(lt::library().version()) + " has no algorithm without split-K for n " +
                       std::to_string(p.n) + ", k " + std::to_string(p.k) + ", m " + std::to_string(least) + " to " +
                       std::to_string(most) + ", " + name_of(p.dtype) + " to " + name_of(p.out_dtype) +
                       (p.bias ? " with bias" : "") + " (" + lt::library().status_name(status) + ", " +
                       std::to_string(num_found) + " suggested)");
}

struct Plan {
  lt::Handle handle;
  lt::Algo algo;
};

Plan plan_for(const LinearParams& p) {
  using Key = std::tuple<int, int64_t, int64_t, DType, DType, bool, uint32_t, uint32_t, uint32_t, size_t, int64_t>;
  static std::mutex mutex;
  static std::map<int, lt::Handle> handles;  // one per device, for the life of the process
  static std::map<Key, lt::Algo> algos;
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  PE_CHECK(kOp, error == cudaSuccess, std::string("cudaGetDevice: ") + cudaGetErrorString(error));
  const Alignments alignments = alignments_of(p);
  const Key key{device,
                p.n,
                p.k,
                p.dtype,
                p.out_dtype,
                p.bias != nullptr,
                alignments.weight,
                alignments.x,
                alignments.out,
                class_of(p.m),
                tuning.suggestion};
  const std::lock_guard<std::mutex> lock(mutex);
  lt::Handle& handle = handles[device];
  if (handle == nullptr) check_status(lt::library().create(&handle), "cublasLtCreate");
  const auto known = algos.find(key);
  if (known != algos.end()) return {handle, known->second};
  const lt::Algo algo = choose(handle, p, class_of(p.m));
  algos.emplace(key, algo);
  return {handle, algo};
}

void check(const LinearParams& p) {
  const auto got = [](int64_t value) { return ", got " + std::to_string(value); };
  PE_CHECK(kOp, p.n >= 1, "n must be positive" + got(p.n));
  PE_CHECK(kOp, p.k >= 1, "k must be positive" + got(p.k));
  PE_CHECK(kOp, p.x_stride >= p.k, "x_stride must be at least k " + std::to_string(p.k) + got(p.x_stride));
  PE_CHECK(kOp, p.out_stride >= p.n, "out_stride must be at least n " + std::to_string(p.n) + got(p.out_stride));
  PE_CHECK(kOp, p.out_dtype == p.dtype || p.out_dtype == DType::kF32,
           std::string("out_dtype must be ") + name_of(p.dtype) + " or f32, got " + name_of(p.out_dtype));
  PE_CHECK(kOp, p.out && p.x && p.weight, "out, x and weight must not be null");
}

}  // namespace

size_t linear_workspace_bytes() { return 0; }  // none, so that no algorithm can reduce through it

void cublaslt_gemm(const LinearParams& p, Stream stream) {
  const Plan plan = plan_for(p);
  const Problem problem(p, p.m);
  const float alpha = 1, beta = 0;
  check_status(lt::library().matmul(plan.handle, problem.desc, &alpha, p.weight, problem.a, p.x, problem.b, &beta,
                                    p.out, problem.d, p.out, problem.d, &plan.algo, nullptr, 0, stream),
               "cublasLtMatmul");
}

void linear(const LinearParams& p, Workspace, Stream stream) {
  PE_CHECK(kOp, p.m >= 0, "m must not be negative, got " + std::to_string(p.m));
  if (p.m == 0) return;
  check(p);
  stream_gemm_fits(p) ? stream_gemm(p, stream) : cublaslt_gemm(p, stream);
}

}  // namespace pe::cuda
