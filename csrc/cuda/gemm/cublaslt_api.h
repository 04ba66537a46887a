// SPDX-License-Identifier: Apache-2.0
// The part of cuBLASLt's C interface that linear.cpp calls, declared here and resolved at run time.
//
// The library comes with torch (it is in the process once torch is imported), its headers do not come with every
// toolkit, and linking it would tie the extension to one major version. Handles, descriptors and the numbers below are
// the documented, stable ABI of cuBLASLt 12 and 13 (NVIDIA cuBLAS documentation, "Using the cuBLASLt API").
#pragma once
#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace pe::cuda::cublaslt {

using Status = int;  // 0 = success
using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;

struct Algo {
  uint64_t opaque[8];
};

struct HeuristicResult {
  Algo algo;
  size_t workspace_bytes;
  Status state;  // the other fields count only when this is 0
  float waves;
  int reserved[4];
};

enum ComputeType : int { kCompute32F = 68 };
enum DataType : int { kR32F = 0, kR16F = 2, kR16BF = 14 };
enum Operation : int32_t { kNone = 0, kTranspose = 1 };
enum Epilogue : uint32_t { kEpilogueDefault = 1, kEpilogueBias = 4 };

enum MatmulDescAttribute : int {
  kDescTransA = 3,
  kDescTransB = 4,
  kDescEpilogue = 7,
  kDescBiasPointer = 8,
  kDescBiasDataType = 26,
};
enum PreferenceAttribute : int {
  kPrefMaxWorkspaceBytes = 1,
  kPrefReductionSchemeMask = 3,  // a set of reduction schemes; 0 allows none but "no reduction"
  kPrefMinAlignmentABytes = 5,
  kPrefMinAlignmentBBytes = 6,
  kPrefMinAlignmentCBytes = 7,
  kPrefMinAlignmentDBytes = 8,
};
enum AlgoConfigAttribute : int { kConfigSplitK = 2, kConfigReductionScheme = 3 };

struct Library {
  size_t (*version)();
  const char* (*status_name)(Status);
  Status (*create)(Handle*);
  Status (*desc_create)(MatmulDesc*, ComputeType, DataType scale_type);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, MatmulDescAttribute, const void*, size_t bytes);
  Status (*layout_create)(MatrixLayout*, DataType, uint64_t rows, uint64_t cols, int64_t leading_dimension);
  Status (*layout_destroy)(MatrixLayout);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, PreferenceAttribute, const void*, size_t bytes);
  Status (*heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, Preference,
                      int num_wanted, HeuristicResult*, int* num_found);
  Status (*algo_check)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, const Algo*,
                       HeuristicResult*);
  Status (*algo_get)(const Algo*, AlgoConfigAttribute, void*, size_t bytes, size_t* written);
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,
                   const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const Algo*, void* workspace,
                   size_t workspace_bytes, CUstream_st*);
};

// Found once, by any thread. The copy that the process has already loaded (torch's) goes first; a second one would be a
// second state. Throws pe::Error when there is none.
const Library& library();

}  // namespace pe::cuda::cublaslt
