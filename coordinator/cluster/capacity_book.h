// What workers are able to hold, by what they say when they come. Workers of one host with the same device and as many
// threads are alike, and measure differently only by what else happens there at that moment: the first measure counts
// for all of them, and for all of their lives.
#pragma once
#include <cstddef>
#include <map>
#include <string>

#include "common/config/expert_spec.h"
#include "common/experts/packed_weights.h"
#include "common/protocol/control_messages.h"
#include "coordinator/cluster/membership.h"

namespace expertmesh {

// device: as a worker names its own.
Holder holder_on(std::string const& device);

// Of one expert of every layer, packed.
struct ExpertBytes {
  std::size_t on_processor = 0;
  std::size_t on_device = 0;
};
ExpertBytes bytes_of_each(ExpertModelSpec const& model);

class CapacityBook {
 public:
  explicit CapacityBook(ExpertBytes const& expert_bytes) : expert_bytes_(expert_bytes) {}

  WorkerCapacity enter(std::string const& host, control::Capacity const& said);

 private:
  ExpertBytes const expert_bytes_;
  std::map<std::string, WorkerCapacity> alike_;  // by host, device without its number, threads
};

}  // namespace expertmesh
