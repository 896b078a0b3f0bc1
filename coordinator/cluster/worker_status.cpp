#include "coordinator/cluster/worker_status.h"

namespace expertmesh {

char const* name_of(WorkerState state) {
  switch (state) {
    case WorkerState::joining:
      return "joining";
    case WorkerState::loading:
      return "loading";
    case WorkerState::serving:
      return "serving";
    case WorkerState::draining:
      return "draining";
    case WorkerState::dead:
      return "dead";
    case WorkerState::left:
      return "left";
  }
  return "unknown";
}

}  // namespace expertmesh
