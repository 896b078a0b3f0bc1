// What a stream beside the first is on the host: work that a thread of its own does in order, as long as that takes.
// handle_of() gives a pointer to one, which is what the stand-in for NCCL puts its transfers into.
#pragma once
#include <cstddef>
#include <functional>

namespace expertmesh::cuda_on_host {

class QueueOnHost {
 public:
  virtual ~QueueOnHost() = default;  // when all is done
  virtual void push(std::function<void()> work) = 0;
  // Whether what is pushed becomes part of the device's recording: it is done when that is launched, each time anew.
  [[nodiscard]] virtual bool is_recording() const = 0;
  virtual void finish() = 0;              // waits
  [[nodiscard]] virtual bool idle() = 0;  // nothing is left to do
  // Copies between the host's memory and the device's, for work that was pushed. Memory that is not allocated aborts.
  virtual void read(void* to, void const* device, std::size_t bytes) = 0;
  virtual void write(void* device, void const* from, std::size_t bytes) = 0;
};

}  // namespace expertmesh::cuda_on_host
