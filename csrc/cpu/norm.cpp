// SPDX-License-Identifier: Apache-2.0
// RMSNorm on the CPU: checks and the split of rows among threads.
#include "pe/norm.h"

#include "pe/parallel.h"
#include "rowwise.h"
#include "run.h"

namespace pe::cpu {

void rms_norm(const RmsNormParams& params) {
  PE_CHECK("rms_norm", params.rows >= 0, "rows must not be negative, got " + std::to_string(params.rows));
  PE_CHECK("rms_norm", params.cols > 0 && params.cols % 8 == 0,
           "cols must be a positive multiple of 8, got " + std::to_string(params.cols));
  PE_CHECK("rms_norm", params.rows == 0 || (params.out && params.x && params.weight),
           "out, x and weight must not be null");
  PE_CHECK("rms_norm",
           params.rows <= 1 || (params.out_stride >= params.cols && params.x_stride >= params.cols &&
                                (!params.residual || params.residual_stride >= params.cols)),
           "row strides must cover a row of " + std::to_string(params.cols) + ", got out " +
               std::to_string(params.out_stride) + ", x " + std::to_string(params.x_stride) + ", residual " +
               std::to_string(params.residual_stride));
  run(params, [](const RmsNormParams& p) {
    const auto kernel = row_kernels().rms_norm;
    parallel_for(p.rows, rows_per_share(p.cols), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

}  // namespace pe::cpu
