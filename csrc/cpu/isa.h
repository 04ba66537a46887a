// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU backend uses on this machine (public face: isa() and set_isa() in pe/parallel.h).
#pragma once

namespace pe::cpu {

// In rising order: a machine that has one has all before it.
enum class Isa { kGeneric, kAvx2, kAvx512Bf16, kAmx };

Isa current_isa();

}  // namespace pe::cpu
