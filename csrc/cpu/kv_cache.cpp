// SPDX-License-Identifier: Apache-2.0
// What writes the KV cache on the CPU (contract: pe/kv_cache.h): the driver of rope_write_kv, and blocks as plain
// copies.
#include <cstring>

#include "isa.h"
#include "kv_cache_rope.h"
#include "pe/parallel.h"
#include "run.h"

namespace pe::cpu {
namespace {

constexpr int64_t kRopeElements = 32768;   // per share: some microseconds, more than waking a thread takes
constexpr int64_t kCopyBytes = 256 << 10;  // per share, likewise

RopeKernel rope_kernel(DType dtype, DType stored) {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512Bf16) return rope_avx512(dtype, stored);
  if (current_isa() >= Isa::kAvx2) return rope_avx2(dtype, stored);
#endif
  return rope_generic(dtype, stored);
}

void check(const RopeWriteKvParams& p) {
  constexpr const char* op = "rope_write_kv";
  const PagedKV& kv = p.kv;
  PE_CHECK(op, kv.head_dim > 0 && kv.head_dim <= 256 && kv.head_dim % 8 == 0,
           "head_dim must be a multiple of 8, at most 256, got " + std::to_string(kv.head_dim));
  PE_CHECK(op, kv.block_size > 0, "block_size must be positive, got " + std::to_string(kv.block_size));
  PE_CHECK(op, kv.dtype == p.dtype || kv.dtype == DType::kF8E4M3,
           std::string("the cache must have the dtype of qkv, ") + name_of(p.dtype) + ", or f8e4m3, got " +
               name_of(kv.dtype));
  PE_CHECK(op, !p.cos_sin || (p.rotary_dim > 0 && p.rotary_dim % 2 == 0 && p.rotary_dim <= kv.head_dim),
           "rotary_dim must be even and at most head_dim " + std::to_string(kv.head_dim) + ", got " +
               std::to_string(p.rotary_dim));
  PE_CHECK(op, p.num_heads >= 0 && kv.num_kv_heads >= 0 && p.num_tokens >= 0,
           "num_heads, num_kv_heads and num_tokens must not be negative");
}

void check_blocks(const char* op, int64_t num_parts, int64_t block_bytes, int64_t num_pairs) {
  PE_CHECK(op, block_bytes >= 0 && block_bytes % 16 == 0,
           "block_bytes must be a multiple of 16, got " + std::to_string(block_bytes));
  PE_CHECK(op, num_parts >= 0 && num_pairs >= 0, "num_parts and num_pairs must not be negative");
}

// copy(i, part) for every pair i and part, dealt out over the threads.
template <typename Copy>
void for_blocks(int64_t num_pairs, int64_t num_parts, int64_t block_bytes, Copy copy) {
  if (block_bytes == 0 || num_parts == 0) return;
  parallel_for(num_pairs * num_parts, div_ceil(kCopyBytes, block_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) copy(i / num_parts, i % num_parts);
  });
}

}  // namespace

void rope_write_kv(const RopeWriteKvParams& params) {
  check(params);
  run(params, [](const RopeWriteKvParams& p) {
    const RopeKernel kernel = rope_kernel(p.dtype, p.kv.dtype);
    if (p.cos_sin) {
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        PE_CHECK("rope_write_kv", p.slot_mapping[t] < 0 || (p.positions[t] >= 0 && p.positions[t] < p.max_position),
                 "positions must be below max_position " + std::to_string(p.max_position) + ", got " +
                     std::to_string(p.positions[t]));
      }
    }
    const int64_t elements = (p.num_heads + 2 * p.kv.num_kv_heads) * p.kv.head_dim;
    parallel_for(p.num_tokens, div_ceil(kRopeElements, elements + 1),
                 [&p, kernel](int64_t begin, int64_t end) { kernel(p, begin, end); });
  });
}

void copy_blocks(const CopyBlocksParams& params) {
  check_blocks("copy_blocks", params.num_parts, params.block_bytes, params.num_pairs);
  run(params, [](const CopyBlocksParams& p) {
    for_blocks(p.num_pairs, p.num_parts, p.block_bytes, [&p](int64_t i, int64_t part) {
      const int64_t src = p.pairs[2 * i], dst = p.pairs[2 * i + 1];
      if (dst < 0) return;
      char* base = static_cast<char*>(p.arena) + part * p.part_stride_bytes;
      std::memcpy(base + dst * p.block_stride_bytes, base + src * p.block_stride_bytes, p.block_bytes);
    });
  });
}

void swap_blocks(const SwapBlocksParams& params) {
  check_blocks("swap_blocks", params.num_parts, params.block_bytes, params.num_pairs);
  run(params, [](const SwapBlocksParams& p) {
    for_blocks(p.num_pairs, p.num_parts, p.block_bytes, [&p](int64_t i, int64_t part) {
      const int64_t src = p.pairs[2 * i], dst = p.pairs[2 * i + 1];
      std::memcpy(static_cast<char*>(p.dst) + part * p.dst_part_stride_bytes + dst * p.dst_block_stride_bytes,
                  static_cast<const char*>(p.src) + part * p.src_part_stride_bytes + src * p.src_block_stride_bytes,
                  p.block_bytes);
    });
  });
}

}  // namespace pe::cpu
