// A queue of a device beside its own, for transfers that a library runs: ordered against the device's work where that
// is asked for, and looked at by the host without waiting. One thread at a time.
#pragma once
#include <cstddef>

#include "common/tensor/dtype.h"

namespace expertmesh {

class LinkQueue {
 public:
  static constexpr std::size_t kMarks = 16;

  virtual ~LinkQueue() = default;  // waits for what is in it

  // What the library takes for its queue: CUDA's stream.
  [[nodiscard]] virtual void* handle() = 0;

  // What is put into this queue from now on begins when all that the device has been given so far is done.
  virtual void follow_device() = 0;
  // And the other way: the device goes on when all that is in this queue is done. The host waits for neither.
  virtual void hold_device() = 0;
  // Both in a recording of the device, too: what is put into the queue behind follow_device() is recorded then, up to
  // the last hold_device(), which must not be missing. Nothing else may be asked of the queue meanwhile.
  [[nodiscard]] virtual bool is_recording() const = 0;

  // Looks in `count` numbers of the device's memory for infinities and NaN, when it is its turn; the next mark tells.
  virtual void look_for_infinities(DType type, std::byte const* numbers, std::size_t count) = 0;
  // A mark, 0…kMarks-1, behind all that is in the queue.
  virtual void set(std::size_t mark) = 0;
  // Whether all before the mark is done. Throws DeviceError of anything that went wrong.
  virtual bool done(std::size_t mark) = 0;
  // What was found between the mark set before this one and this one, which is done.
  [[nodiscard]] virtual bool found_infinities(std::size_t mark) const = 0;
};

}  // namespace expertmesh
