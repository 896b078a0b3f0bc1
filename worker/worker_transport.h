// How a worker's messages come and go: with each coordinator through memory that it offers to share, or by MPI.
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "common/transport/mixed_transport.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/mpi_transport.h"
#include "common/transport/shm_transport.h"

namespace expertmesh {

// To one coordinator.
struct DataPath {
  std::optional<ShmArea> area;  // none: by MPI
  MpiComm comm;
  std::string how;  // as control::Loaded says it
};

// offer: control::Assign::shm. most_bytes: of a message from here. From then on the coordinator may be told how.
DataPath open_data_path(std::string const& offer, MpiComm comm, std::size_t most_bytes);

class WorkerTransports {
 public:
  // max_ops: by MPI, those in quarantine included.
  explicit WorkerTransports(std::size_t max_ops);

  // ---- the loop's thread
  void add_peer(PeerId peer, DataPath&& path);
  [[nodiscard]] Transport& transport() { return mixed_; }

 private:
  MpiTransport mpi_;
  ShmTransport shm_{ShmTransportLimits()};
  MixedTransport mixed_{{&mpi_, &shm_}};
};

}  // namespace expertmesh
