// SPDX-License-Identifier: Apache-2.0
// Warp-wide matrix multiply m16n8k16 with fp32 accumulators, and ldmatrix that fills its fragments (PTX ISA,
// "mma.m16n8k16 with floating point type" and "ldmatrix"; sm_80 and up). All 32 lanes must call.
//
// With g = lane / 4 and t = lane % 4, a register holding two 16-bit elements, the first in the low half:
//   a[0] = A[g    ][2t, 2t + 1]      a[2] = A[g    ][2t + 8, 2t + 9]        A is 16 x 16, rows are queries
//   a[1] = A[g + 8][2t, 2t + 1]      a[3] = A[g + 8][2t + 8, 2t + 9]
//   b0   = B[2t, 2t + 1][g]          b1   = B[2t + 8, 2t + 9][g]            B is 16 (k) x 8 (n)
//   c[0], c[1] = C[g][2t, 2t + 1]    c[2], c[3] = C[g + 8][2t, 2t + 1]      C is 16 x 8
// So the accumulators of two neighbouring n-tiles, packed with pack2, are an A fragment of the next product: a[0] and
// a[1] from the left tile's c[0..1] and c[2..3], a[2] and a[3] from the right tile's.
#pragma once
#include "cuda/common/vec.cuh"

namespace pe::cuda {

#if defined(PE_SIMT)

inline void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row) { simt::ldmatrix_x4(r, smem_row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem_row) { simt::ldmatrix_x4(r, smem_row, true); }

template <typename T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::mma_m16n8k16(c, a, b0, b1, [](uint32_t pair, float* lo, float* hi) {
    const float2 f = unpack2<T>(pair);
    *lo = f.x;
    *hi = f.y;
  });
}

#else

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, 16-byte
// aligned). With g and t as above, r[i] receives of matrix i the elements [g][2t, 2t + 1]; with _trans [2t, 2t + 1][g].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(smem_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a b
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

}  // namespace pe::cuda
