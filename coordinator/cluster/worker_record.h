// What the control plane knows of one worker.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "common/protocol/control_messages.h"
#include "coordinator/cluster/worker_status.h"

namespace expertmesh {

// What one worker has been told to be, and what it says of itself.
struct WorkerRecord {
  WorkerStatus status;
  bool joined = false;     // its hello was accepted
  bool called = false;     // its MPI daemon has called this process's
  std::uint32_t nccl = 0;  // see control::Hello
  std::optional<control::Capacity> capacity{};
  std::uint64_t loaded_bytes = 0;
  std::uint64_t total_bytes = 0;                                    // 0 until its first progress message
  control::FailureKind failure_kind = control::FailureKind::other;  // if dead
};

// Of those that this host starts.
bool any_dead(std::vector<WorkerRecord> const& records);
// The start cannot go on without them: throws ModelError or ClusterError for the first that is dead.
void throw_for_dead(std::vector<WorkerRecord> const& records);

}  // namespace expertmesh
