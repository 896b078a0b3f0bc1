// Ops that a device has recorded: a CUDA graph, which costs the host one launch, whatever is in it.
#pragma once

namespace expertmesh {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Takes its turn among the device's work. What it reads is what its addresses hold then.
  virtual void launch() = 0;
};

}  // namespace expertmesh
