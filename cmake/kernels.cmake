# SPDX-License-Identifier: Apache-2.0
# pe_kernels: csrc/cpu always, csrc/cuda with PE_CUDA. Sources are found by name, instruction sets by suffix.
find_package(Threads REQUIRED)
if(PE_CUDA)
  include(cmake/cuda.cmake)  # before the target, which takes its CUDA settings when it is made
endif()

file(GLOB_RECURSE PE_CPU_SOURCES CONFIGURE_DEPENDS csrc/core.cpp csrc/cpu/*.cpp)
add_library(pe_kernels STATIC ${PE_CPU_SOURCES})
target_include_directories(pe_kernels PUBLIC csrc/include PRIVATE csrc)
target_compile_options(pe_kernels PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-fno-math-errno;-fno-trapping-math>)
target_link_libraries(pe_kernels PUBLIC Threads::Threads ${CMAKE_DL_LIBS})

# A file *_avx2.cpp, *_avx512.cpp or *_amx.cpp is compiled for that instruction set and called only after a check at run
# time; every other file runs on any x86-64. On other processors these files must compile to nothing.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(PE_AVX2_FLAGS -mavx2 -mfma -mf16c)
  set(PE_AVX512_FLAGS ${PE_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND PE_AVX512_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)  # GCC 12 warns about its own avx512fintrin.h (GCC PR 105593)
  endif()
  set(PE_AMX_FLAGS ${PE_AVX512_FLAGS} -mamx-tile -mamx-bf16)
  foreach(source ${PE_CPU_SOURCES})
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${PE_AVX2_FLAGS}")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${PE_AVX512_FLAGS}")
    elseif(source MATCHES "_amx\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${PE_AMX_FLAGS}")
    endif()
  endforeach()
endif()

if(PE_CUDA)
  file(GLOB_RECURSE PE_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
  target_sources(pe_kernels PRIVATE ${PE_CUDA_SOURCES})
  target_compile_options(pe_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall>)
  target_compile_definitions(pe_kernels PUBLIC PE_CUDA=1)
  target_link_libraries(pe_kernels PUBLIC pe_cuda_runtime)
endif()

# An executable of one source file, named after it, linked with the kernels alone.
function(pe_add_program source)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE pe_kernels)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_options(${name} PRIVATE -Wall -Wextra)
endfunction()
