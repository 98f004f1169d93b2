# SPDX-License-Identifier: Apache-2.0
# libattentile_cuda.so: the kernels for sm_80 and sm_90, and PTX for what comes after. The library
# loads it when it is first given tensors on a GPU, so nothing here is linked to anything.
include_guard()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90" CACHE STRING "GPUs that kernels are compiled for")
endif()
if(NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}" CACHE FILEPATH "C++ compiler of nvcc")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "attentile: nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, expected 12.8 or later")
endif()
if(ATTENTILE_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${ATTENTILE_CCACHE}")
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS src/cuda/gpu/*.cu)
add_library(attentile_cuda SHARED ${cuda_sources})
target_include_directories(attentile_cuda PRIVATE src include)
# CMake 3.25 does not know that this compiler has C++20.
set(cuda_options -std=c++20 --expt-relaxed-constexpr -fmad=false --compress-mode=size --threads=2
                 -Xcompiler=-Wall,-Wextra,-Wno-psabi)
if(ATTENTILE_WERROR)
  list(APPEND cuda_options -Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(attentile_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
set_target_properties(
  attentile_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden
                            POSITION_INDEPENDENT_CODE ON LINKER_LANGUAGE CUDA)
attentile_backend_exports(attentile_cuda)
if(ATTENTILE_INSTALL)
  install(TARGETS attentile_cuda LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
