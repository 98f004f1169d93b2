# SPDX-License-Identifier: Apache-2.0
# attentile_target(NAME): the language level, warnings and floating-point rules of every target
# of this project. Nothing is set globally, so a parent project keeps its own flags.
include_guard()

# Kernels say where they fuse multiply and add; the compiler never does, so results depend on
# neither compiler nor flags. -ffast-math is never used.
set(ATTENTILE_COMPILE_OPTIONS -ffp-contract=off)
set(ATTENTILE_WARNING_OPTIONS -Wall -Wextra -Wshadow)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees overlapping copies in "text" + std::string (GCC bug 105329).
  list(APPEND ATTENTILE_WARNING_OPTIONS -Wno-restrict)
endif()
if(ATTENTILE_WERROR)
  list(APPEND ATTENTILE_WARNING_OPTIONS -Werror)
endif()

# Of a library that exports the backend's table and nothing else.
function(attentile_backend_exports name)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(map "${PROJECT_SOURCE_DIR}/cmake/attentile_cuda.map")
    target_link_options(${name} PRIVATE "-Wl,--version-script=${map}")
    set_target_properties(${name} PROPERTIES LINK_DEPENDS "${map}")
  endif()
endfunction()

function(attentile_target name)
  set(options ${ATTENTILE_COMPILE_OPTIONS} ${ATTENTILE_WARNING_OPTIONS})
  target_compile_features(${name} PUBLIC cxx_std_20)
  target_compile_options(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${options}>")
  set_target_properties(
    ${name} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
                       VISIBILITY_INLINES_HIDDEN ON)
endfunction()
