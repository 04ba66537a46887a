# SPDX-License-Identifier: Apache-2.0
# Enables CUDA with whatever nvcc there is: CMAKE_CUDA_COMPILER, else the one in PATH, else /usr/local/cuda's. Also with the
# compiler of pip's nvidia-* packages, whose layout (lib, no lib64, no libcudart.so) CMake's own CUDAToolkit module refuses.
# Defines pe_cuda_runtime: the toolkit's headers and the static runtime.

# sm_80 machine code also runs on sm_86 and sm_89; sm_90a unlocks Hopper's own instructions but runs on Hopper alone; so the same
# sources are also kept as compute_90 PTX, which the driver compiles for anything newer.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # linked by name below

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "PE_CUDA=ON needs nvcc: put it in PATH or pass -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
endif()
execute_process(COMMAND readlink -f ${CMAKE_CUDA_COMPILER} OUTPUT_VARIABLE PE_NVCC OUTPUT_STRIP_TRAILING_WHITESPACE)
get_filename_component(PE_TOOLKIT ${PE_NVCC}/../.. ABSOLUTE)
file(GLOB PE_CUDART_FOUND ${PE_TOOLKIT}/lib*/libcudart_static.a ${PE_TOOLKIT}/targets/*/lib/libcudart_static.a)
if(PE_CUDART_FOUND)
  list(GET PE_CUDART_FOUND 0 PE_CUDART_FOUND)
  get_filename_component(PE_CUDA_LIBRARIES ${PE_CUDART_FOUND} DIRECTORY)
  set(CMAKE_CUDA_FLAGS "-L${PE_CUDA_LIBRARIES}" CACHE STRING "flags of nvcc")  # CMake links a test program to know the compiler
endif()
enable_language(CUDA)
# Where nvcc is a script that stands elsewhere than its toolkit, it has told CMake by now where it looks.
find_library(PE_CUDART_STATIC cudart_static HINTS ${PE_CUDA_LIBRARIES} ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
mark_as_advanced(PE_CUDART_STATIC)

# The static runtime: _C then needs no libcudart of a certain name beside it, and cannot pick up another copy than the one it was
# compiled with. It shares with torch's runtime what matters (primary context, streams, events, graphs), for those belong
# to the driver; the sticky error state stays our own. cuBLASLt is opened at run time, not linked.
add_library(pe_cuda_runtime INTERFACE)
target_include_directories(pe_cuda_runtime SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(pe_cuda_runtime INTERFACE ${PE_CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
