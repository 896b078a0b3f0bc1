// A Device whose kernels run on the host: those of common/kernels/cuda, compiled by the plain compiler.
#pragma once
#include <cstddef>
#include <memory>

#include "common/kernels/device.h"

namespace expertmesh {

std::unique_ptr<Device> open_device_on_host(std::size_t index = 0);

}  // namespace expertmesh
