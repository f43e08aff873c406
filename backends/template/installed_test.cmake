# SPDX-License-Identifier: Apache-2.0
# The README's way, as a test: install the package, copy this folder, build the copy against the package.
#   cmake -DBUILD=<attest build> -DSOURCE=<this folder> -DWORK=<scratch> -P installed_test.cmake
# Leaves the backend at ${WORK}/build/attest-backend-template.so.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE "${WORK}")
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix --component attest_abi)
file(COPY "${SOURCE}/" DESTINATION "${WORK}/source")
run(${CMAKE_COMMAND} -S ${WORK}/source -B ${WORK}/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=${WORK}/prefix
    -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build ${WORK}/build)
if(NOT EXISTS "${WORK}/build/attest-backend-template.so")
  message(FATAL_ERROR "the build made no attest-backend-template.so")
endif()
