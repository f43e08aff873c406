# SPDX-License-Identifier: Apache-2.0
# attest_add_backend(<name> SOURCES <files> [LINK <targets>]): one backend, as attest-backend-<name>.so.
#
# The same function serves this repository and, through find_package(attest), anyone else's. In this repository the
# library goes where `attest certify --backend <name>` looks for it; elsewhere into the build folder.
function(attest_add_backend name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "attest_add_backend(${name}): wanted SOURCES <files> [LINK <targets>], got \"${ARGN}\"")
  endif()
  set(target attest-backend-${name})
  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE attest::abi ${arg_LINK})
  target_compile_features(${target} PRIVATE cxx_std_20)
  # One exported symbol: two backends in one process must not find each other's functions.
  set_target_properties(${target} PROPERTIES PREFIX "" CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
                                             C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON)
  if(UNIX AND NOT APPLE)
    set(exports "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/attest-backend.map")
    target_link_options(${target} PRIVATE "LINKER:--version-script=${exports}")
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${exports}")
  endif()
  if(TARGET attest_abi) # In this repository; the installed package has attest::abi alone.
    set_target_properties(${target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib/attest/backends")
    if(TARGET attest_warnings)
      target_link_libraries(${target} PRIVATE attest_warnings)
    endif()
    install(TARGETS ${target} LIBRARY DESTINATION lib/attest/backends COMPONENT attest)
  endif()
endfunction()
