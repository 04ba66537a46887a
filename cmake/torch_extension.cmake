# SPDX-License-Identifier: Apache-2.0
# pyengine/_C.so: csrc/torch on torch's stable ABI.
#
# Only headers of torch's stable set are used, with TORCH_TARGET_VERSION naming the oldest torch in range, so that one binary
# loads in every torch of the range, whichever of them it was compiled against. It has no Python symbol and is loaded by
# torch.ops.load_library. libtorch_cpu is linked for its soname (already loaded by then: no rpath); what _C needs of
# libtorch_cuda is looked up at run time, so that the same binary also loads in a CPU build of torch.
if(NOT PE_TORCH_DIR)
  find_program(PE_PYTHON NAMES python3 python REQUIRED)
  execute_process(
    COMMAND ${PE_PYTHON} ${PROJECT_SOURCE_DIR}/build_backend/environment.py --torch-dir
    OUTPUT_VARIABLE PE_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
if(NOT EXISTS "${PE_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "no torch with a stable ABI in '${PE_TORCH_DIR}': pass -DPE_TORCH_DIR=.../site-packages/torch, or -DPE_TORCH=OFF")
endif()

file(GLOB PE_TORCH_SOURCES CONFIGURE_DEPENDS csrc/torch/*.cpp)
add_library(_C MODULE ${PE_TORCH_SOURCES})
target_include_directories(_C PRIVATE csrc)
target_include_directories(_C SYSTEM PRIVATE ${PE_TORCH_DIR}/include)
file(SHA256 ${PROJECT_SOURCE_DIR}/csrc/torch/schema.cpp PE_SCHEMA_HASH)
string(SUBSTRING ${PE_SCHEMA_HASH} 0 12 PE_SCHEMA_HASH)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/torch/schema.cpp)
target_compile_definitions(_C PRIVATE
  TORCH_TARGET_VERSION=0x020b000000000000
  PE_VERSION="${PROJECT_VERSION}"
  PE_SCHEMA_HASH="${PE_SCHEMA_HASH}"
  PE_CUDA_VERSION="$<IF:$<BOOL:${PE_CUDA}>,${CMAKE_CUDA_COMPILER_VERSION},none>")
target_compile_options(_C PRIVATE -Wall -Wextra)
target_link_libraries(_C PRIVATE pe_kernels ${PE_TORCH_DIR}/lib/libtorch_cpu.so)
target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL -Wl,--as-needed -Wl,-z,defs)
set_target_properties(_C PROPERTIES
  PREFIX "" SUFFIX ".so" SKIP_BUILD_RPATH ON LIBRARY_OUTPUT_DIRECTORY ${PE_EXTENSION_DIR})
