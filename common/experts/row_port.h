// Where rows come from, and their answers go to, that travel past the messages: from device to device.
#pragma once
#include <cstddef>

namespace expertmesh {

// Requests in the order in which they were made, each received before the next and answered before the next. All of it
// takes its turn among the device's work: nothing waits on the host. What fails throws.
class RowPort {
 public:
  virtual ~RowPort() = default;
  // The rows of the next request, in the device's memory: there when the device comes to what it is given from now on.
  virtual std::byte const* receive(std::size_t bytes) = 0;
  // Room in the device's memory for the answer to it, and off it goes when the device has done what it has been given.
  virtual std::byte* room() = 0;
  virtual void send(std::size_t bytes) = 0;
  // What the device is given from now on begins when all receives and sends are done.
  virtual void hold_device() = 0;
  // receive(), send() and, behind them, hold_device() may be part of the device's recording. It was launched, behind a
  // hold_device(): until it is done, that much is under way.
  virtual void launched() = 0;
  // Receives and sends that are not done.
  [[nodiscard]] virtual std::size_t under_way() const = 0;
};

}  // namespace expertmesh
