# SPDX-License-Identifier: Apache-2.0
# The static libraries between the library and the program, and the program itself.
include_guard()

# attentile_internal(NAME SOURCE...): a static library that sees the private headers.
function(attentile_internal name)
  add_library(${name} STATIC ${ARGN})
  attentile_target(${name})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(${name} PUBLIC ${attentile_inside})
endfunction()

set(internal_targets ${attentile_inside})

attentile_internal(attentile_accuracy ${accuracy_sources})
list(APPEND internal_targets attentile_accuracy)

file(GLOB io_sources CONFIGURE_DEPENDS io/*.cc)
attentile_internal(attentile_io ${io_sources})
target_link_libraries(attentile_io PUBLIC nlohmann_json::nlohmann_json fmt::fmt)
list(APPEND internal_targets attentile_io)

include(cmake/AttentileEmulator.cmake)

file(GLOB support_sources CONFIGURE_DEPENDS tests/support/*.cc)
attentile_internal(attentile_test_support ${support_sources})
target_include_directories(attentile_test_support PUBLIC "${PROJECT_SOURCE_DIR}/tests")
target_link_libraries(attentile_test_support PUBLIC Threads::Threads)
list(APPEND internal_targets attentile_test_support)

file(GLOB conformance_sources CONFIGURE_DEPENDS tests/conformance/*.cc)
list(FILTER conformance_sources EXCLUDE REGEX "(_test|/driver)\\.cc$")
attentile_internal(attentile_conformance ${conformance_sources})
target_include_directories(attentile_conformance PUBLIC "${PROJECT_SOURCE_DIR}/tests")
target_link_libraries(attentile_conformance PUBLIC ${internal_targets} Threads::Threads fmt::fmt)
list(APPEND internal_targets attentile_conformance)

if(ATTENTILE_BUILD_CLI)
  # All but main is a library, so that tests and fuzzers call commands in their own process.
  file(GLOB cli_sources CONFIGURE_DEPENDS cli/*.cc)
  list(FILTER cli_sources EXCLUDE REGEX "/main\\.cc$")
  attentile_internal(attentile_commands ${cli_sources})
  target_link_libraries(
    attentile_commands PUBLIC ${internal_targets} CLI11::CLI11 fmt::fmt
                              nlohmann_json::nlohmann_json Threads::Threads)
  execute_process(
    COMMAND git -C "${PROJECT_SOURCE_DIR}" rev-parse --short=12 HEAD
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(compiler "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
  set_source_files_properties(
    cli/build_info.cc
    PROPERTIES COMPILE_DEFINITIONS
               "ATTENTILE_COMMIT=\"${commit}\";ATTENTILE_COMPILER=\"${compiler}\"")
  list(APPEND internal_targets attentile_commands)
  add_executable(attentile_cli cli/main.cc)
  attentile_target(attentile_cli)
  target_link_libraries(attentile_cli PRIVATE ${internal_targets})
  set_target_properties(
    attentile_cli
    PROPERTIES OUTPUT_NAME attentile RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin"
               INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endif()

# The conformance table from a command line of its own, for long runs.
add_executable(attentile_conformance_driver tests/conformance/driver.cc)
attentile_target(attentile_conformance_driver)
target_link_libraries(attentile_conformance_driver PRIVATE ${internal_targets} CLI11::CLI11)
set_target_properties(
  attentile_conformance_driver
  PROPERTIES OUTPUT_NAME conformance_driver RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
