// SPDX-License-Identifier: Apache-2.0
// Boxes of a paged cache on their way to shared memory by the copy engine (PTX ISA, "cp.async.bulk.tensor"; sm_90 and
// up). One thread asks for a box, whatever its size: a warp spends an instruction on 4 KiB where cp.async takes eight
// and their addresses.
//
// The box that all this is about: 16 tokens of one head of one block, all of head_dim, which is `words` columns of 16
// bits. As blocks of 64 columns:
//   [words / 64][16 rows][128 bytes], the 16-byte vector v of row r in place v ^ r % 8 of its row
// (the 128-byte swizzle: the 8 rows that one ldmatrix phase reads lie in 8 different bank groups). With 32 columns
//   [16 rows][64 bytes], the vector in place v ^ r / 2 % 4 (the 64-byte swizzle, to the same end).
// The hardware swizzles address bits, so boxes begin at multiples of 1024 bytes.
#pragma once
#include "cuda/common/mbarrier.cuh"

#if !defined(PE_SIMT)
#include <cuda.h>
#endif

namespace pe::cuda {

constexpr int kBoxColumns = 64, kBoxTokens = 16;
constexpr int box_bytes(int words) { return kBoxTokens * words * 2; }
constexpr int box_row_bytes(int words) { return (words < kBoxColumns ? words : kBoxColumns) * 2; }
// Where a vector of a row of a block lies in that row.
__host__ __device__ constexpr int place_in_box(int row_bytes, int row, int vector) {
  return vector ^ row / (128 / row_bytes) % (row_bytes / 16);
}

#if defined(PE_SIMT)

// What the driver encodes on a GPU.
struct BoxMap {
  const unsigned char* base;
  int64_t token_stride, head_stride, block_stride;  // bytes
  int num_blocks, words;
};
inline void prefetch_map(const BoxMap*) {}

inline void bulk_fence_before_reuse() {}
inline void copy_box(void* to, const BoxMap* map, int token, int head, int block, uint64_t* barrier) {
  if (block < 0 || block >= map->num_blocks) simt::fail("copy_box: no block " + std::to_string(block));
  const int row_bytes = box_row_bytes(map->words), row_vectors = row_bytes / 16;
  for (int row = 0; row < kBoxTokens; ++row) {
    const unsigned char* from =
        map->base + block * map->block_stride + head * map->head_stride + (token + row) * map->token_stride;
    for (int vector = 0; vector < map->words / 8; ++vector) {
      unsigned char* place = static_cast<unsigned char*>(to) + vector / row_vectors * kBoxTokens * row_bytes;
      place += row * row_bytes + place_in_box(row_bytes, row, vector % row_vectors) * 16;
      std::memcpy(place, from + vector * 16, 16);
    }
  }
  mbarrier_progress(barrier, 0, -box_bytes(map->words));
}

#else

using BoxMap = CUtensorMap;  // a kernel takes it as a const __grid_constant__ parameter

__device__ __forceinline__ void prefetch_map(const BoxMap* map) {
  PE_SM90_ASM("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Between plain stores to shared memory and a copy to the same place.
__device__ __forceinline__ void bulk_fence_before_reuse() {
  PE_SM90_ASM("fence.proxy.async.shared::cta;" :: : "memory");
}
// Tokens [token, token + 16) of one head of one physical block. A block that does not exist arrives as zeros.
__device__ __forceinline__ void copy_box(void* to, const BoxMap* map, int token, int head, int block,
                                         uint64_t* barrier) {
  PE_SM90_ASM(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %3, %5, %6}], "
      "[%2];" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(0), "r"(token), "r"(head), "r"(block) : "memory");
}
// The same of one block of 64 columns, by a map of such boxes: [16 rows][128 bytes].
__device__ __forceinline__ void copy_box_columns(void* to, const BoxMap* map, int token, int column_block, int head,
                                                 int block, uint64_t* barrier) {
  PE_SM90_ASM(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(0), "r"(token), "r"(column_block), "r"(head), "r"(block) : "memory");
}

#endif

}  // namespace pe::cuda
