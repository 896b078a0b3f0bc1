// What /v1/experts says: of every expert its part of the work, and who holds it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/config/expert_spec.h"
#include "coordinator/cluster/worker_status.h"
#include "coordinator/observe/metrics.h"

namespace expertmesh {

struct ExpertsView {
  struct Layer {
    Metrics::ExpertBalance balance;                   // of this layer's experts alone
    std::vector<std::vector<std::uint32_t>> holders;  // [E] ids of the processes that serve it, ascending; 0 is the
                                                      // coordinator; none: it runs this one from the checkpoint
  };
  std::vector<Layer> layers;  // MoE layers, ascending
};

// balance: one for each layer of `experts`. processes: who may hold experts; those that do not serve do not count.
ExpertsView experts_view(ExpertModelSpec const& experts, std::vector<Metrics::ExpertBalance> balance,
                         std::vector<WorkerStatus> const& processes);
std::string to_json(ExpertsView const& view);

}  // namespace expertmesh
