// SPDX-License-Identifier: Apache-2.0
// The gated product on the CPU: its two ops, each of which is recorded by itself. gate_up stays in the cache of the
// cores for the few rows of a decode, and for many its round trip is small beside the product.
#include "pe/linear_silu_mul.h"

namespace pe::cpu {

void linear_silu_mul(const LinearSiluMulParams& p) {
  PE_CHECK("linear_silu_mul", p.cols > 0 && p.cols % 8 == 0,
           "cols must be a positive multiple of 8, got " + std::to_string(p.cols));
  PE_CHECK("linear_silu_mul", p.m == 0 || (p.out && p.gate_up), "out and gate_up must not be null");
  linear(linear_of(p));
  silu_mul(silu_mul_of(p));
}

}  // namespace pe::cpu
