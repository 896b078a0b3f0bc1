#include "coordinator/cluster/worker_record.h"

#include <algorithm>
#include <string>

#include "common/base/error.h"
#include "coordinator/cluster/cluster.h"

namespace expertmesh {

bool any_dead(std::vector<WorkerRecord> const& records) {
  return std::ranges::any_of(records,
                             [](auto const& r) { return !r.status.remote && r.status.state == WorkerState::dead; });
}

void throw_for_dead(std::vector<WorkerRecord> const& records) {
  for (auto const& record : records) {
    if (record.status.remote || record.status.state != WorkerState::dead) continue;
    std::string const text = "worker " + std::to_string(record.status.id.value()) + ": " + record.status.death_reason;
    if (record.failure_kind == control::FailureKind::model) throw ModelError(text);
    throw ClusterError(text);
  }
}

}  // namespace expertmesh
