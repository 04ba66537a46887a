// SPDX-License-Identifier: Apache-2.0
// Run-time detection of the instruction set (contract: pe/parallel.h).
#include "isa.h"

#include <array>
#include <atomic>

#include "pe/parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pe::cpu {
namespace {

constexpr std::array<const char*, 4> kNames = {"generic", "avx2", "avx512bf16", "amx"};

#if defined(__x86_64__)
bool has_amx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
#if defined(__linux__) && defined(SYS_arch_prctl)
  // Tile data is 8 KiB of state per thread, so Linux wants to be asked once per process.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return Isa::kGeneric;
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bf16");
  if (!avx512) return Isa::kAvx2;
  return has_amx() ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
Isa detect() { return Isa::kGeneric; }
#endif

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> chosen{best_isa()};
  return chosen;
}

}  // namespace

Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

const char* isa() { return kNames[static_cast<size_t>(current_isa())]; }

void set_isa(const std::string& name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name != kNames[i]) continue;
    PE_CHECK("set_isa", static_cast<Isa>(i) <= best_isa(),
             "this machine lacks " + name + "; its best is " + kNames[static_cast<size_t>(best_isa())]);
    return chosen_isa().store(static_cast<Isa>(i), std::memory_order_relaxed);
  }
  throw_error("set_isa", "expected generic, avx2, avx512bf16 or amx, got \"" + name + "\"");
}

}  // namespace pe::cpu
