// The queue of a stream beside the first, over the device's memory.
#pragma once
#include <functional>
#include <memory>

#include "device_arena.h"
#include "queue_on_host.h"

namespace expertmesh::cuda_on_host {

class ThreadQueue : public QueueOnHost {
 public:
  // From now on what is pushed is given to `recorder`; empty again: it is done.
  virtual void record_by(std::function<void(std::function<void()>)> recorder) = 0;
};

std::unique_ptr<ThreadQueue> make_thread_queue(DeviceArena& memory);

}  // namespace expertmesh::cuda_on_host
