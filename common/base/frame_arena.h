// Memory for the coroutine frames of one micro-batch: a stack of blocks, no allocation after its making.
#pragma once
#include <cstddef>

#include "common/base/aligned_buffer.h"

namespace expertmesh {

// Frames are given back in reverse order of their making (a callee's frame dies before its caller's), so a bump pointer
// is enough. One micro-batch runs on one thread at a time.
class FrameArena {
 public:
  explicit FrameArena(std::size_t bytes) : memory_(bytes) {}
  void* allocate(std::size_t bytes);
  void release(void* frame, std::size_t bytes);

 private:
  AlignedBuffer<std::byte> memory_;
  std::size_t used_ = 0;
};

}  // namespace expertmesh
