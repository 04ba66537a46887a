// SPDX-License-Identifier: Apache-2.0
// Where the kernels' static __shared__ variables live in this process.
#pragma once
#include <cstddef>
#include <utility>
#include <vector>

namespace pe::simt {

// (address, bytes) of each linker section whose name starts with "pe_shared_", in every object that is loaded.
const std::vector<std::pair<unsigned char*, size_t>>& shared_sections();

}  // namespace pe::simt
