// A worker that is offered memory which it does not find: its coordinator is elsewhere, as far as it can see.
#include "worker/worker.h"

namespace expertmesh {
namespace {

WorkerHooks hooks_for(WorkerOptions const& /*options*/) {
  return {.started = {},
          .connected = {},
          .assigned =
              [](control::Assign& assign) {
                if (!assign.shm.empty()) assign.shm = "1 /proc/self/fd/1000000";
              },
          .wrap = {}};
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  return expertmesh::worker_main(argc, argv, expertmesh::hooks_for);
}
