// The queue of a stream beside the first, over the device's memory.
#pragma once
#include <memory>

#include "device_arena.h"
#include "queue_on_host.h"

namespace expertmesh::cuda_on_host {

std::unique_ptr<QueueOnHost> make_thread_queue(DeviceArena& memory);

}  // namespace expertmesh::cuda_on_host
