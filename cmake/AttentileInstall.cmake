# SPDX-License-Identifier: Apache-2.0
# Install rules: headers, library, CMake package `attentile`, attentile.pc and the program.
include_guard()
include(CMakePackageConfigHelpers)

install(TARGETS attentile EXPORT attentile)
install(DIRECTORY include/attentile "${CMAKE_CURRENT_BINARY_DIR}/include/attentile"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
if(TARGET attentile_cli)
  install(TARGETS attentile_cli)
endif()
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/attentile")
configure_package_config_file(
  cmake/attentileConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/attentileConfig.cmake"
  INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/attentileConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/attentileConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/attentileConfigVersion.cmake"
        DESTINATION "${package_dir}")
install(EXPORT attentile FILE attentileTargets.cmake NAMESPACE attentile::
        DESTINATION "${package_dir}")

# A static library's users link what it needs; with a shared one that is nobody's business.
set(private_libs "-lstdc++ -lm -pthread -ldl")
if(BUILD_SHARED_LIBS)
  set(libs "")
else()
  set(libs " ${private_libs}")
  set(private_libs "")
endif()
file(RELATIVE_PATH prefix_from_pc "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
string(REGEX REPLACE "/$" "" prefix_from_pc "${prefix_from_pc}")
configure_file(cmake/attentile.pc.in attentile.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/attentile.pc"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
