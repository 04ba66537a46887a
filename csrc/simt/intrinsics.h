// SPDX-License-Identifier: Apache-2.0
// CUDA's words in plain C++: keywords, built-in variables, warp collectives, atomics and the device math in use here.
// Included by simt.h alone. What is missing is added here, with the meaning that the CUDA programming guide gives it.
#pragma once
#include <cstring>
#include <limits>
#include <type_traits>

#undef __shared__
#undef __launch_bounds__
#undef __constant__
#undef __forceinline__
#define PE_SIMT_TEXT_(x) #x
#define PE_SIMT_TEXT(x) PE_SIMT_TEXT_(x)
// One linker section per declaration: simt.cpp finds them by their prefix and poisons them before each block.
#define __shared__ static __attribute__((section("pe_shared_" PE_SIMT_TEXT(__COUNTER__))))
#define __launch_bounds__(...)
#define __constant__ static
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__
#define PE_DYNAMIC_SMEM(type, name) type* const name = static_cast<type*>(::pe::simt::dynamic_smem())

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define PE_SIMT_SITE(what) (::pe::simt::Site{what, file, line})
#define PE_SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- block ---------------------------------------------------------------------------------------------------------

inline void __syncthreads(PE_SIMT_HERE) { ::pe::simt::barrier(PE_SIMT_SITE("__syncthreads"), false); }
inline int __syncthreads_count(int predicate, PE_SIMT_HERE) {
  return ::pe::simt::barrier(PE_SIMT_SITE("__syncthreads_count"), predicate != 0);
}
inline int __syncthreads_or(int predicate, PE_SIMT_HERE) {
  return ::pe::simt::barrier(PE_SIMT_SITE("__syncthreads_or"), predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, PE_SIMT_HERE) {
  return ::pe::simt::barrier(PE_SIMT_SITE("__syncthreads_and"), predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { ::pe::simt::fail("__trap"); }
inline void __nanosleep(unsigned) {}

// ---- warp ----------------------------------------------------------------------------------------------------------

namespace pe::simt {

template <typename T>
struct ShuffleArgs {
  T value;
  int source;
};

template <typename T>
T shuffle(const Site& site, uint32_t mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
  ShuffleArgs<T> args{value, source};
  warp_collective(site, mask, &args, [](uint32_t lanes, void* const* all) {
    T result[32];
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      const int from = static_cast<ShuffleArgs<T>*>(all[lane])->source;
      if (!(lanes >> from & 1))
        fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
             ", which the mask leaves out");
      result[lane] = static_cast<ShuffleArgs<T>*>(all[from])->value;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes >> lane & 1) static_cast<ShuffleArgs<T>*>(all[lane])->value = result[lane];
    }
  });
  return args.value;
}

template <typename T>
struct FoldArgs {
  T value;
  T (*fold)(T, T);
};

// Folds the values of all lanes in the mask, in lane order, and hands each lane the result.
template <typename T>
T fold_lanes(const Site& site, uint32_t mask, T value, T (*fold)(T, T)) {
  FoldArgs<T> args{value, fold};
  warp_collective(site, mask, &args, [](uint32_t lanes, void* const* all) {
    FoldArgs<T>* result = nullptr;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      auto* mine = static_cast<FoldArgs<T>*>(all[lane]);
      if (result != nullptr) mine->value = mine->fold(result->value, mine->value);
      result = mine;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes >> lane & 1) static_cast<FoldArgs<T>*>(all[lane])->value = result->value;
    }
  });
  return args.value;
}

}  // namespace pe::simt

inline void __syncwarp(unsigned mask = 0xffffffffu, PE_SIMT_HERE) {
  ::pe::simt::warp_collective(PE_SIMT_SITE("__syncwarp"), mask, nullptr, [](uint32_t, void* const*) {});
}
inline unsigned __activemask() { return ::pe::simt::live_lanes(); }

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, PE_SIMT_HERE) {
  const int base = ::pe::simt::current_lane() & ~(width - 1);
  return ::pe::simt::shuffle(PE_SIMT_SITE("__shfl_sync"), mask, x, base | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int lane_mask, int width = 32, PE_SIMT_HERE) {
  const int lane = ::pe::simt::current_lane(), from = lane ^ lane_mask;
  const int end = (lane & ~(width - 1)) + width;
  return ::pe::simt::shuffle(PE_SIMT_SITE("__shfl_xor_sync"), mask, x, from < end ? from : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, PE_SIMT_HERE) {
  const int lane = ::pe::simt::current_lane(), from = lane - static_cast<int>(delta);
  return ::pe::simt::shuffle(PE_SIMT_SITE("__shfl_up_sync"), mask, x, from >= (lane & ~(width - 1)) ? from : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, PE_SIMT_HERE) {
  const int lane = ::pe::simt::current_lane(), from = lane + static_cast<int>(delta);
  return ::pe::simt::shuffle(PE_SIMT_SITE("__shfl_down_sync"), mask, x,
                             from < (lane & ~(width - 1)) + width ? from : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, PE_SIMT_HERE) {
  const unsigned bit = predicate ? 1u << ::pe::simt::current_lane() : 0u;
  return ::pe::simt::fold_lanes<unsigned>(PE_SIMT_SITE("__ballot_sync"), mask, bit,
                                          [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<int>(PE_SIMT_SITE("__any_sync"), mask, predicate != 0 ? 1 : 0,
                                     [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int predicate, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<int>(PE_SIMT_SITE("__all_sync"), mask, predicate != 0 ? 1 : 0,
                                     [](int a, int b) { return a & b; });
}
template <typename T>
T __reduce_add_sync(unsigned mask, T x, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<T>(PE_SIMT_SITE("__reduce_add_sync"), mask, x, [](T a, T b) { return T(a + b); });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T x, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<T>(PE_SIMT_SITE("__reduce_min_sync"), mask, x, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T x, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<T>(PE_SIMT_SITE("__reduce_max_sync"), mask, x, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<unsigned>(PE_SIMT_SITE("__reduce_or_sync"), mask, x,
                                          [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned x, PE_SIMT_HERE) {
  return ::pe::simt::fold_lanes<unsigned>(PE_SIMT_SITE("__reduce_and_sync"), mask, x,
                                          [](unsigned a, unsigned b) { return a & b; });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T x, PE_SIMT_HERE) {
  unsigned equal = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (__shfl_sync(mask, x, lane, 32, file, line) == x) equal |= 1u << lane;
  }
  return equal;
}

// ---- memory --------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldca(const T* p) {
  return *p;
}
template <typename T, typename U>
void __stcs(T* p, U x) {
  *p = x;
}
template <typename T, typename U>
void __stcg(T* p, U x) {
  *p = x;
}

namespace pe::simt {
template <typename T, typename F>
T exchange(T* p, F f) {
  const T old = *p;
  *p = f(old);
  return old;
}
template <typename T>
using Same = std::common_type_t<T>;  // not deduced: in atomicAdd(&counter_u64, 1) the pointer gives the type
}  // namespace pe::simt

template <typename T>
T atomicAdd(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return T(old + x); });
}
template <typename T>
T atomicSub(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return T(old - x); });
}
template <typename T>
T atomicMax(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return old < x ? x : old; });
}
template <typename T>
T atomicMin(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return x < old ? x : old; });
}
template <typename T>
T atomicOr(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return T(old | x); });
}
template <typename T>
T atomicAnd(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return T(old & x); });
}
template <typename T>
T atomicXor(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T old) { return T(old ^ x); });
}
template <typename T>
T atomicExch(T* p, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [x](T) { return x; });
}
template <typename T>
T atomicCAS(T* p, ::pe::simt::Same<T> expected, ::pe::simt::Same<T> x) {
  return ::pe::simt::exchange(p, [=](T old) { return old == expected ? x : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return ::pe::simt::exchange(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// glibc declares but does not export some of these names, hence macros. Each stands for the accurate function: what the
// GPU computes in fewer bits is compared with a tolerance anyway.
#define __expf(x) ::expf(x)
#define __exp10f(x) ::powf(10.0f, x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __powf(x, y) ::powf(x, y)
#define __fdividef(x, y) ((x) / (y))
#define __frcp_rn(x) (1.0f / (x))
#define __frsqrt_rn(x) (1.0f / ::sqrtf(x))
#define __fsqrt_rn(x) ::sqrtf(x)
#define __fdiv_rn(x, y) ((x) / (y))
#define rsqrtf(x) (1.0f / ::sqrtf(x))

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

namespace pe::simt {
template <typename To, typename From>
To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <typename T>
T clamp_to(float x, float (*round)(float)) {  // CUDA's conversions saturate, NaN becomes 0
  using Limits = std::numeric_limits<T>;
  if (!(x == x)) return 0;
  const float r = round(x);
  if (r <= static_cast<float>(Limits::min())) return Limits::min();
  if (r >= static_cast<float>(Limits::max())) return Limits::max();
  return static_cast<T>(r);
}
}  // namespace pe::simt
inline unsigned __float_as_uint(float x) { return ::pe::simt::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return ::pe::simt::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return ::pe::simt::bits_as<float>(x); }
inline float __int_as_float(int x) { return ::pe::simt::bits_as<float>(x); }
inline int __float2int_rn(float x) { return ::pe::simt::clamp_to<int>(x, ::rintf); }
inline int __float2int_rd(float x) { return ::pe::simt::clamp_to<int>(x, ::floorf); }
inline int __float2int_rz(float x) { return ::pe::simt::clamp_to<int>(x, ::truncf); }
inline unsigned __float2uint_rn(float x) { return ::pe::simt::clamp_to<unsigned>(x, ::rintf); }
inline unsigned __float2uint_rz(float x) { return ::pe::simt::clamp_to<unsigned>(x, ::truncf); }
inline unsigned long long __float2ull_rn(float x) { return ::pe::simt::clamp_to<unsigned long long>(x, ::rintf); }
inline unsigned long long __float2ull_rz(float x) { return ::pe::simt::clamp_to<unsigned long long>(x, ::truncf); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) y |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return y;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{hi} << 32 | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((uint64_t{hi} << 32 | lo) >> (shift & 31));
}

#define PE_SIMT_MIN_MAX(T)                         \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
PE_SIMT_MIN_MAX(int)
PE_SIMT_MIN_MAX(unsigned)
PE_SIMT_MIN_MAX(long)
PE_SIMT_MIN_MAX(unsigned long)
PE_SIMT_MIN_MAX(long long)
PE_SIMT_MIN_MAX(unsigned long long)
#undef PE_SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }  // a NaN gives way to a number, as on the GPU
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
