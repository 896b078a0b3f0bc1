// A Device whose kernels run on the host: those of common/kernels/cuda, compiled by the plain compiler.
#pragma once
#include <memory>

#include "common/kernels/device.h"

namespace expertmesh {

std::unique_ptr<Device> open_device_on_host();

}  // namespace expertmesh
