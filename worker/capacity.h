// What a worker tells its coordinator of itself, before it is assigned any experts.
#pragma once
#include "common/base/thread_pool.h"
#include "common/kernels/device.h"
#include "common/protocol/control_messages.h"

namespace expertmesh {

// Memory: of the host, or of the device (may be null). Rate: gigabytes of weights a second, or 0: measured, which takes
// some tens of milliseconds.
control::Capacity capacity_of(ThreadPool& pool, Device* device, double gigabytes_per_second);

}  // namespace expertmesh
