// Memory that is not this process's own: a GPU's. Host code holds its addresses and never follows them.
#pragma once
#include <cstddef>

namespace expertmesh {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Zero-filled, aligned to 256 bytes; bytes: not 0. At start-up only. Throws DeviceError.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Copies take their turn among the device's work. `from` of an upload may be reused when the call returns; a download
  // returns when the bytes are there, and so when all work before it is done.
  virtual void upload(void* to, void const* from, std::size_t bytes) = 0;
  virtual void download(void* to, void const* from, std::size_t bytes) = 0;
};

}  // namespace expertmesh
