// SPDX-License-Identifier: Apache-2.0
// The CPU recorder's ops; see recorder.cpp.
#pragma once

#include "torch/convert.h"

namespace pe::torch_ops {

int64_t record_begin();  // starts recording this thread's CPU ops; returns the program's handle
void record_end(int64_t handle);
void record_replay(int64_t handle);
void record_free(int64_t handle);

}  // namespace pe::torch_ops
