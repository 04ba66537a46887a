// SPDX-License-Identifier: Apache-2.0
#include "cuda/gemm/cublaslt_api.h"

#include <dlfcn.h>

#include <string>

#include "pe/core.h"

namespace pe::cuda::cublaslt {
namespace {

constexpr const char* kOp = "linear";
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};

void* open_library() {
  for (const int extra : {RTLD_NOLOAD, 0}) {
    for (const char* name : kNames) {
      if (void* const found = dlopen(name, RTLD_NOW | RTLD_LOCAL | extra)) return found;
    }
  }
  const char* const reason = dlerror();
  throw_error(kOp,
              std::string("cuBLASLt not found (tried libcublasLt.so.13, .12 and unversioned): import a CUDA build of "
                          "torch first, or put the library on LD_LIBRARY_PATH; the loader says: ") +
                  (reason ? reason : "nothing"));
}

template <typename Function>
void resolve(void* handle, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(handle, name));
  PE_CHECK(kOp, *out != nullptr,
           std::string("the loaded cuBLASLt lacks ") + name + ": update nvidia-cublas (12 or newer is needed)");
}

Library load() {
  void* const handle = open_library();
  Library lib{};
  resolve(handle, "cublasLtGetVersion", &lib.version);
  resolve(handle, "cublasLtGetStatusName", &lib.status_name);
  resolve(handle, "cublasLtCreate", &lib.create);
  resolve(handle, "cublasLtMatmulDescCreate", &lib.desc_create);
  resolve(handle, "cublasLtMatmulDescDestroy", &lib.desc_destroy);
  resolve(handle, "cublasLtMatmulDescSetAttribute", &lib.desc_set);
  resolve(handle, "cublasLtMatrixLayoutCreate", &lib.layout_create);
  resolve(handle, "cublasLtMatrixLayoutDestroy", &lib.layout_destroy);
  resolve(handle, "cublasLtMatmulPreferenceCreate", &lib.preference_create);
  resolve(handle, "cublasLtMatmulPreferenceDestroy", &lib.preference_destroy);
  resolve(handle, "cublasLtMatmulPreferenceSetAttribute", &lib.preference_set);
  resolve(handle, "cublasLtMatmulAlgoGetHeuristic", &lib.heuristic);
  resolve(handle, "cublasLtMatmulAlgoCheck", &lib.algo_check);
  resolve(handle, "cublasLtMatmulAlgoConfigGetAttribute", &lib.algo_get);
  resolve(handle, "cublasLtMatmul", &lib.matmul);
  return lib;
}

}  // namespace

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace pe::cuda::cublaslt
