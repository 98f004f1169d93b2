# SPDX-License-Identifier: Apache-2.0
# What the command line and the tests need: CLI11, fmt, nlohmann-json, GoogleTest. In a cross build
# the headers of the host's packages serve (they hold no machine code), reached through a folder of
# links so that nothing else of the host's include path is seen.
include_guard()

function(attentile_find_package package debian_package)
  find_package(${package} CONFIG QUIET)
  if(NOT ${package}_FOUND)
    message(
      FATAL_ERROR
        "attentile: ${package} was not found (Debian: apt-get install ${debian_package}). The "
        "library alone needs none: -DATTENTILE_BUILD_CLI=OFF -DATTENTILE_BUILD_TESTS=OFF")
  endif()
endfunction()

function(attentile_host_headers target folder)
  set(links "${CMAKE_BINARY_DIR}/host_headers")
  file(MAKE_DIRECTORY "${links}")
  file(CREATE_LINK "/usr/include/${folder}" "${links}/${folder}" SYMBOLIC)
  add_library(${target} INTERFACE IMPORTED)
  target_include_directories(${target} SYSTEM INTERFACE "${links}")
endfunction()

if(CMAKE_CROSSCOMPILING)
  attentile_host_headers(CLI11::CLI11 CLI)
  attentile_host_headers(fmt::fmt fmt)
  target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
  attentile_host_headers(nlohmann_json::nlohmann_json nlohmann)
else()
  attentile_find_package(CLI11 libcli11-dev)
  attentile_find_package(fmt libfmt-dev)
  attentile_find_package(nlohmann_json nlohmann-json3-dev)
endif()

if(ATTENTILE_BUILD_TESTS)
  if(CMAKE_CROSSCOMPILING)
    set(ATTENTILE_GOOGLETEST "/usr/src/googletest" CACHE PATH "GoogleTest's sources")
    set(INSTALL_GTEST OFF CACHE INTERNAL "")
    add_subdirectory("${ATTENTILE_GOOGLETEST}" "${CMAKE_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL
                     SYSTEM)
  else()
    attentile_find_package(GTest "libgtest-dev libgmock-dev")
  endif()
endif()
