// How a worker's messages come and go: through memory that the coordinator offers to share, or by MPI.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

#include "common/transport/mpi_runtime.h"
#include "common/transport/transport.h"

namespace expertmesh {

struct WorkerTransport {
  std::unique_ptr<Transport> transport;
  std::string how;  // as control::Loaded says it
};

// offer: control::Assign::shm. From then on the coordinator may be told how. Only one of the two is used.
WorkerTransport make_worker_transport(std::string const& offer, PeerId coordinator, MpiComm comm, std::size_t max_ops);

}  // namespace expertmesh
