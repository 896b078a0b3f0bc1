// In the place of the other files of this folder where the build has no CUDA.
#include "common/base/error.h"
#include "common/kernels/device.h"

namespace expertmesh {

std::unique_ptr<Device> open_cuda_device(std::size_t index) {
  throw DeviceError("open_cuda_device", 0,
                    "this build has no CUDA: its CMake found no nvcc, or EXPERTMESH_CUDA was off",
                    "cuda:" + std::to_string(index));
}

}  // namespace expertmesh
