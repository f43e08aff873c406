// SPDX-License-Identifier: Apache-2.0
// The kernels around attention.
#include "combine.cuh"
#include "intake.cuh"
#include "launch.cuh"
#include "survey.cuh"

namespace attest::cuda {

#if defined(__CUDACC__)
int kernels_compiled_for() {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, entry<Survey>);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
      status == cudaErrorUnsupportedPtxVersion) {
    (void)cudaGetLastError();
    return 0;
  }
  ATTEST_CUDA(status);
  return attributes.ptxVersion;
}
#endif

void launch_survey(const SurveyArguments& arguments, Stream stream) {
  launch<Survey>({1, 1, 1}, Survey::shared_bytes, stream, arguments);
}
void launch_intake(Grid grid, const IntakeArguments& arguments, Stream stream) {
  launch<Intake>(grid, 0, stream, arguments);
}
void launch_store(Grid grid, const StoreArguments& arguments, Stream stream) {
  launch<Store>(grid, 0, stream, arguments);
}
void launch_combine(Grid grid, const CombineArguments& arguments, Stream stream) {
  launch<Combine>(grid, Combine::shared_bytes, stream, arguments);
}

}  // namespace attest::cuda
