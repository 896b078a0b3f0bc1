// A worker's life with one coordinator, life after life: connect, be taken in, load what it assigns, be served by the
// loop until it says that it is over. On a thread of its own, which may wait for that coordinator as long as it takes.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "common/protocol/control_messages.h"
#include "common/transport/nccl_api.h"
#include "worker/control_client.h"
#include "worker/coordinator_roll.h"
#include "worker/mpi_entry.h"
#include "worker/worker.h"
#include "worker/worker_machine.h"

namespace expertmesh {

// What the sessions of a process have in common.
struct SessionContext {
  WorkerOptions const& options;
  WorkerHooks const& hooks;
  std::string secret;
  control::Hello hello;
  std::shared_ptr<NcclApi> nccl;  // for the one coordinator, if there is a device; null: rows come by the host
  std::function<WorkerMachine&()> machine{};  // there when a session is in MPI; throws what its making threw
  CoordinatorRoll& roll;
  Doorbell& bell;
  MpiEntry mpi{};
};

// Returns when it is over for good: let go, refused, or ended when the process was asked to end. The context must live
// as long as the process. Throws NetworkError where the only coordinator cannot be reached.
void run_session(SessionContext& context, std::size_t coordinator);

}  // namespace expertmesh
