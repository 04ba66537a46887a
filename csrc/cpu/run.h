// SPDX-License-Identifier: Apache-2.0
// What every public cpu op ends in: run now and, while this thread records, keep the call for replay.
#pragma once
#include "pe/parallel.h"

namespace pe::cpu {

Program* recording();  // the program that this thread records into, or null

// An op checks its arguments, then: run(params, [](const Params& p) { ... }). The lambda captures nothing: the params
// are all it knows, so a copy of them is the whole recorded call. A call that throws is not recorded. Ops do not nest.
template <typename Params, typename Op>
void run(const Params& params, Op op) {
  op(params);
  if (Program* program = recording()) program->append([params, op] { op(params); });
}

}  // namespace pe::cpu
