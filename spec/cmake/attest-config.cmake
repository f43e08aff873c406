# SPDX-License-Identifier: Apache-2.0
# find_package(attest): the target attest::abi (the headers of spec/attest), and attest_add_backend().
find_path(ATTEST_DLPACK_INCLUDE_DIR dlpack/dlpack.h)
if(NOT ATTEST_DLPACK_INCLUDE_DIR)
  set(attest_FOUND FALSE)
  set(attest_NOT_FOUND_MESSAGE "attest needs dlpack/dlpack.h (Debian: libdlpack-dev); set ATTEST_DLPACK_INCLUDE_DIR")
  return()
endif()
include("${CMAKE_CURRENT_LIST_DIR}/attest-targets.cmake")
set_property(TARGET attest::abi APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${ATTEST_DLPACK_INCLUDE_DIR}")
include("${CMAKE_CURRENT_LIST_DIR}/attest-backend.cmake")
