// How messages reach a cluster's workers: those of this host through memory that each shares with this process, others,
// and where that cannot be, by MPI.
#pragma once
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "common/base/strong_id.h"
#include "common/transport/mixed_transport.h"
#include "common/transport/mpi_transport.h"
#include "common/transport/shm_transport.h"
#include "coordinator/cluster/row_transport.h"

namespace expertmesh {

class ClusterTransport {
 public:
  struct Options {
    MessageTransport choice = MessageTransport::automatic;
    ShmShape shape;  // of the memory shared with one worker
    std::size_t max_mpi_ops = 1024;
  };
  explicit ClusterTransport(Options const& options);

  // ---- the present life of a worker; any thread
  // Memory for it, as it is told in control::Assign::shm; empty: it gets none. host: as it says. Throws ClusterError
  // where there must be some, and cannot.
  std::string offer(WorkerId worker, std::string const& host);
  // What is wrong with how it says that its messages go; empty: nothing, and so they go.
  std::string objection(WorkerId worker, std::string const& transport);

  // ---- engine thread
  // A worker that has said how. Whether they go by shared memory.
  bool add_peer(PeerId peer, WorkerId worker, MpiComm comm);
  [[nodiscard]] Transport& transport() { return mixed_; }

  [[nodiscard]] std::size_t shared_bytes() const;  // with one worker; 0: with none

 private:
  struct Offered {
    ShmArea area;
    bool taken = false;
  };

  Options const options_;
  MpiTransport mpi_;
  ShmTransport shm_{ShmTransportLimits()};
  MixedTransport mixed_{{&mpi_, &shm_}};
  std::mutex mutex_;
  std::map<WorkerId, Offered> offered_;  // guarded by mutex_; to the last life of each
};

}  // namespace expertmesh
