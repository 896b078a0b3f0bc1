#include "device_on_host.h"

#include "common/kernels/cuda/cuda_device.h"

namespace expertmesh {

std::unique_ptr<Device> open_device_on_host(std::size_t index) {
  return std::make_unique<cuda_on_host::CudaDevice>(index);
}

}  // namespace expertmesh
