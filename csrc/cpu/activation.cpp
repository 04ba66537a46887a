// SPDX-License-Identifier: Apache-2.0
// SiLU-mul on the CPU: checks and the split of rows among threads.
#include "pe/activation.h"

#include "pe/parallel.h"
#include "rowwise.h"
#include "run.h"

namespace pe::cpu {

void silu_mul(const SiluMulParams& params) {
  PE_CHECK("silu_mul", params.rows >= 0, "rows must not be negative, got " + std::to_string(params.rows));
  PE_CHECK("silu_mul", params.cols > 0 && params.cols % 8 == 0,
           "cols must be a positive multiple of 8, got " + std::to_string(params.cols));
  PE_CHECK("silu_mul", params.rows == 0 || (params.out && params.gate_up), "out and gate_up must not be null");
  PE_CHECK("silu_mul",
           params.rows <= 1 || (params.out_stride >= params.cols && params.gate_up_stride >= 2 * params.cols),
           "row strides must cover a row of cols " + std::to_string(params.cols) + ", got out " +
               std::to_string(params.out_stride) + ", gate_up " + std::to_string(params.gate_up_stride));
  run(params, [](const SiluMulParams& p) {
    const auto kernel = row_kernels().silu_mul;
    parallel_for(p.rows, rows_per_share(p.cols), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

}  // namespace pe::cpu
