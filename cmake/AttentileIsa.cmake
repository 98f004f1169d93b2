# SPDX-License-Identifier: Apache-2.0
# add_cpu_isa(NAME FLAG...): compiles src/cpu/isa_NAME.cc with FLAGs as an object library, puts it
# into the library and defines ATTENTILE_HAVE_<NAME> for the library's other sources. Left out,
# with one line that says so, when the compiler does not know a flag.
include_guard()
include(CheckCXXCompilerFlag)

function(add_cpu_isa name)
  string(TOUPPER "${name}" upper)
  if(ARGN)
    string(REPLACE ";" " " flags "${ARGN}")
    check_cxx_compiler_flag("${flags}" ATTENTILE_COMPILER_KNOWS_${upper})
    if(NOT ATTENTILE_COMPILER_KNOWS_${upper})
      message(STATUS "attentile: no ${name} kernels, the compiler does not know ${flags}")
      return()
    endif()
  endif()

  set(target attentile_isa_${name})
  add_library(${target} OBJECT "src/cpu/isa_${name}.cc")
  attentile_target(${target})
  target_include_directories(${target} PRIVATE include src "${CMAKE_CURRENT_BINARY_DIR}/include")
  # Kernels are optimised in every build type, or tests of a Debug build would take hours.
  # Kernels throw nothing; without handlers they need no symbol of the C++ runtime.
  target_compile_options(${target} PRIVATE ${ARGN} -fno-exceptions $<$<NOT:$<CONFIG:Release>>:-O2>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 takes the undefined operands of its own AVX-512 intrinsics for a mistake.
    # And its vectorisers load the next row of a tile on the last step, past the end of the caller's
    # memory (tests/edge shows it).
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized
                                             -fno-tree-slp-vectorize -fno-tree-loop-vectorize)
  endif()
  foreach(library IN LISTS attentile_libraries)
    target_sources(${library} PRIVATE $<TARGET_OBJECTS:${target}>)
  endforeach()
  target_compile_definitions(attentile_objects PRIVATE ATTENTILE_HAVE_${upper}=1)
endfunction()
