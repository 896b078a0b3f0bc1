// A step in the static form (step_layout.h), as a worker runs it: all its tokens' rows come for every layer, with the
// experts of all their slots, and the rows of those slots go back whose experts are held here. Who goes where is known
// to the device alone; the host asks for layer after layer, some of them ahead, or launches the graph of a step like
// it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/experts/expert_service.h"
#include "common/kernels/graph_cache.h"

namespace expertmesh {

class StaticStep {
 public:
  // options: with a port. All must outlive it. Tables of the experts held are made here, in the device's memory.
  StaticStep(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options);

  // Answers the call as ExpertService::serve() does; true: the step is under way.
  bool begin(ServiceCall& call);
  // Asks the device for as much of it as it may be ahead; false: all of the step is done. Throws what the port throws.
  bool advance();

 private:
  void launch_if_known();
  void run(std::size_t layer_index);

  ExpertStore const& store_;
  Exec const& exec_;
  ExpertServiceOptions const options_;
  GraphCache graphs_;
  std::vector<AlignedBuffer<DeviceExpert>> tables_;  // [layers] by number in the layer, up to the last that is held

  // Of the step under way.
  std::size_t tokens_ = 0;
  std::size_t experts_per_token_ = 0;
  std::vector<std::size_t> layers_;  // indices
  std::vector<std::uint64_t> key_;
  std::size_t next_ = 0;  // of them
};

}  // namespace expertmesh
