# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels on the host, instruction by instruction.
include_guard()

# The kernels of src/cuda on the host; only tests need it.
file(GLOB emulator_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/cuda/emulator/*.cc")
list(FILTER emulator_sources EXCLUDE REGEX "/library\\.cc$")
add_library(attentile_cuda_emulator STATIC EXCLUDE_FROM_ALL ${emulator_sources})
attentile_target(attentile_cuda_emulator)
target_include_directories(
  attentile_cuda_emulator PUBLIC "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/include")
target_link_libraries(attentile_cuda_emulator PUBLIC ${attentile_inside})
# In the place of libattentile_cuda.so: `--device emulator` loads it. Never installed.
add_library(
  attentile_cuda_emulated SHARED EXCLUDE_FROM_ALL
                                 "${PROJECT_SOURCE_DIR}/src/cuda/emulator/library.cc")
attentile_target(attentile_cuda_emulated)
target_link_libraries(attentile_cuda_emulated PRIVATE attentile_cuda_emulator)
attentile_backend_exports(attentile_cuda_emulated)
