// Moments of a device's time, on its own clock.
#pragma once
#include <cstddef>

namespace expertmesh {

// A mark is passed when all work that was called for before it is done. Setting one takes the host about a microsecond,
// the device another, and waits for nothing; the first time that a number is set makes room for it.
class DeviceMarks {
 public:
  virtual ~DeviceMarks() = default;
  virtual void set(std::size_t mark) = 0;
  // Between two that have been set, in this order; waits until the later one is passed. Throws DeviceError.
  [[nodiscard]] virtual double seconds_between(std::size_t from, std::size_t to) = 0;
};

}  // namespace expertmesh
