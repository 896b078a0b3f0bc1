// Decode steps of one shape ask the same of a device: the second time that a shape is seen it is recorded as a CUDA
// graph, and from then on the host launches it with one call.
#pragma once
#include <cstddef>
#include <functional>
#include <list>
#include <memory>

#include "common/kernels/device.h"

namespace expertmesh {

class StepGraphs {
 public:
  explicit StepGraphs(Device& device) : device_(device) {}

  // Everything that what a step asks of the device depends on.
  struct Shape {
    std::size_t tokens = 0;
    std::size_t sequences = 0;
    std::size_t most_positions = 0;
    void const* inputs = nullptr;  // where they are
    bool operator==(Shape const&) const = default;
  };
  // Has the device do what `ops` asks of it, which is the same for every step of this shape. Throws what ops throws.
  void run(Shape const& shape, std::function<void()> const& ops);

  [[nodiscard]] std::size_t num_launched() const { return num_launched_; }  // steps that were one launch

 private:
  static constexpr std::size_t kMostShapes = 64;  // kept, those used last

  struct Seen {
    Shape shape;
    std::unique_ptr<DeviceGraph> graph{};  // null: seen once, or it could not be had
    bool refused = false;                  // by the device, which has no room for more
  };
  void record(Seen& seen, std::function<void()> const& ops);

  Device& device_;
  std::list<Seen> seen_;  // the one used last first
  std::size_t num_launched_ = 0;
};

}  // namespace expertmesh
