// SPDX-License-Identifier: Apache-2.0
// Float, Int and Mask of the instruction set that this file is compiled for, and functions on top of them.
#pragma once
#if defined(__AVX512F__)
#include "math_avx512.h"
#elif defined(__AVX2__)
#include "math_avx2.h"
#else
#include "math_generic.h"
#endif

namespace pe::cpu {
namespace {

// e^x for x <= 0: at most 1 ulp off down to -87, zero below (where the result would leave the normal range), NaN for
// NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q minimax of degree 4 (relative error of e^r 3e-9).
// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits, from where it is added to the
// exponent.
PE_INLINE Float exp_negative(Float x) {
  const Float magic = Float::splat(12582912.0f);
  const Float shifted = fma(x, Float::splat(1.44269504f), magic);
  const Float n = shifted - magic;
  // ln 2 in two parts; the first has 10 bits, so that its product with n is exact even without a fused multiply-add.
  const Float r = fnma(n, Float::splat(-2.12194440e-4f), fnma(n, Float::splat(0.693359375f), x));
  Float q = fma(Float::splat(0.0013814539f), r, Float::splat(0.008368745f));
  q = fma(q, r, Float::splat(0.04166839f));
  q = fma(q, r, Float::splat(0.16666521f));
  q = fma(q, r, Float::splat(0.49999994f));
  const Float e = Float::splat(1.0f) + fma(q, r * r, r);
  const Float scaled = as_float(as_int(e) + shift_left<23>(as_int(shifted)));
  const Float in_range = select(less(x, Float::splat(-87.0f)), Float::splat(0.0f), scaled);
  return select(at_most(x, x), in_range, x);
}

}  // namespace
}  // namespace pe::cpu
