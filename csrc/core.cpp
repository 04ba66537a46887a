// SPDX-License-Identifier: Apache-2.0
// What every backend shares: the one place where errors get their form, and the names of the element types.
#include "pe/core.h"

namespace pe {

const char* name_of(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8e4m3";
  }
  return "unknown dtype";
}

void throw_error(const char* op, const std::string& text) { throw Error(std::string(op) + ": " + text); }

}  // namespace pe
