// SPDX-License-Identifier: Apache-2.0
// Float, Int and Mask of 4 lanes in the compiler's portable vector types: the fallback for every machine.
#pragma once
#include "math.h"

namespace pe::cpu {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));

struct Mask {
  Int4 v;
  PE_MEMBER unsigned bits() const { return (v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8); }
};
PE_INLINE Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
PE_INLINE Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
PE_INLINE Mask operator~(Mask a) { return {~a.v}; }

struct Int {
  Int4 v;
  PE_MEMBER static Int splat(int32_t x) { return {Int4{x, x, x, x}}; }
  PE_MEMBER static Int iota() { return {Int4{0, 1, 2, 3}}; }
  PE_MEMBER static Int load(const int32_t* p) {
    Int r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  PE_MEMBER void store(int32_t* p) const { std::memcpy(p, &v, sizeof v); }
};
PE_INLINE Int operator+(Int a, Int b) { return {a.v + b.v}; }
PE_INLINE Int operator*(Int a, Int b) {
  return {reinterpret_cast<Int4>(reinterpret_cast<Uint4>(a.v) * reinterpret_cast<Uint4>(b.v))};
}
PE_INLINE Int operator^(Int a, Int b) { return {a.v ^ b.v}; }
PE_INLINE Int operator~(Int a) { return {~a.v}; }
template <int kBits>
PE_INLINE Int shift_left(Int a) {
  return {a.v << kBits};
}
template <int kBits>
PE_INLINE Int shift_right(Int a) {  // zeros come in
  return {reinterpret_cast<Int4>(reinterpret_cast<Uint4>(a.v) >> kBits)};
}
PE_INLINE Mask less(Int a, Int b) { return {a.v < b.v}; }
PE_INLINE Int select(Mask m, Int a, Int b) { return {m.v ? a.v : b.v}; }

struct Float {
  static constexpr int kWidth = 4;
  static constexpr int kRows = 4, kColumns = 2;  // accumulators of a register block: 8 of 16 registers
  Float4 v;

  PE_MEMBER static Float splat(float x) { return {Float4{x, x, x, x}}; }
  template <typename T>
  PE_MEMBER static Float load(const T* p) {
    return {Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
  }
  template <typename T>
  PE_MEMBER void store(T* p) const {
    for (int i = 0; i < kWidth; ++i) from_float(v[i], p + i);
  }
  PE_MEMBER float first() const { return v[0]; }
  // Of what is left of a row, n elements: all lanes, because n is a positive multiple of 8.
  template <typename T>
  PE_MEMBER static Float load(const T* p, int64_t) {
    return load(p);
  }
  template <typename T>
  PE_MEMBER void store(T* p, int64_t) const {
    store(p);
  }
};
PE_INLINE Float operator+(Float a, Float b) { return {a.v + b.v}; }
PE_INLINE Float operator-(Float a, Float b) { return {a.v - b.v}; }
PE_INLINE Float operator*(Float a, Float b) { return {a.v * b.v}; }
PE_INLINE Float operator/(Float a, Float b) { return {a.v / b.v}; }
PE_INLINE Float fma(Float a, Float b, Float c) { return {a.v * b.v + c.v}; }
PE_INLINE Float fnma(Float a, Float b, Float c) { return {c.v - a.v * b.v}; }
PE_INLINE Mask less(Float a, Float b) { return {a.v < b.v}; }      // false for NaN
PE_INLINE Mask at_most(Float a, Float b) { return {a.v <= b.v}; }  // false for NaN
PE_INLINE Float select(Mask m, Float a, Float b) { return {m.v ? a.v : b.v}; }
PE_INLINE Float max(Float a, Float b) { return {a.v > b.v ? a.v : b.v}; }  // b when either is NaN
PE_INLINE Int as_int(Float a) { return {reinterpret_cast<Int4>(a.v)}; }
PE_INLINE Float as_float(Int a) { return {reinterpret_cast<Float4>(a.v)}; }
PE_INLINE Int truncate(Float a) { return {__builtin_convertvector(a.v, Int4)}; }
PE_INLINE Float convert(Int a) { return {__builtin_convertvector(a.v, Float4)}; }

PE_INLINE float sum(Float a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
PE_INLINE float max_of(Float a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}

PE_INLINE void transpose(Float* r) {
  const Float4 a = __builtin_shuffle(r[0].v, r[1].v, Int4{0, 4, 1, 5}),
               b = __builtin_shuffle(r[0].v, r[1].v, Int4{2, 6, 3, 7});
  const Float4 c = __builtin_shuffle(r[2].v, r[3].v, Int4{0, 4, 1, 5}),
               d = __builtin_shuffle(r[2].v, r[3].v, Int4{2, 6, 3, 7});
  r[0].v = __builtin_shuffle(a, c, Int4{0, 1, 4, 5});
  r[1].v = __builtin_shuffle(a, c, Int4{2, 3, 6, 7});
  r[2].v = __builtin_shuffle(b, d, Int4{0, 1, 4, 5});
  r[3].v = __builtin_shuffle(b, d, Int4{2, 3, 6, 7});
}

// Appends the lanes of `a` that are set in `m` at `out`, in order; up to kWidth - 1 elements past them may be
// overwritten.
PE_INLINE int compress(Mask m, Int a, int32_t* out) {
  int n = 0;
  for (int i = 0; i < Float::kWidth; ++i) {
    out[n] = a.v[i];
    n += m.v[i] & 1;
  }
  return n;
}

}  // namespace
}  // namespace pe::cpu
