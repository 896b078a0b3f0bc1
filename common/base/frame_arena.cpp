#include "common/base/frame_arena.h"

#include "common/base/check.h"

namespace expertmesh {
namespace {
std::size_t rounded(std::size_t bytes) {
  return (bytes + 63) / 64 * 64;
}
}  // namespace

void* FrameArena::allocate(std::size_t bytes) {
  std::size_t const size = rounded(bytes);
  EM_CHECK(used_ + size <= memory_.size(), "coroutine frames need " << used_ + size << " bytes of " << memory_.size());
  void* frame = memory_.data() + used_;
  used_ += size;
  return frame;
}

void FrameArena::release(void* frame, std::size_t bytes) {
  used_ -= rounded(bytes);
  EM_CHECK(frame == memory_.data() + used_, "coroutine frames must die in reverse order");
}

}  // namespace expertmesh
