#include "worker/worker_transport.h"

#include <utility>

#include "common/base/log.h"
#include "common/transport/mpi_transport.h"
#include "common/transport/shm_transport.h"

namespace expertmesh {

WorkerTransport make_worker_transport(std::string const& offer, PeerId coordinator, MpiComm comm, std::size_t max_ops) {
  std::string how = "mpi";
  if (!offer.empty()) try {
      ShmArea area = ShmArea::open(offer);
      area.accept();
      spdlog::info("messages by shared memory, at most {} bytes of it", area.size());
      auto shm = std::make_unique<ShmTransport>(ShmTransportLimits{.max_ops_per_peer = max_ops});
      shm->add_peer(coordinator, std::move(area));
      return {.transport = std::move(shm), .how = "shm"};
    } catch (ShmError const& error) {
      spdlog::warn("messages by MPI, no memory is shared: {}", error.what());
      how = std::string("mpi (") + error.what() + ")";
    }
  auto mpi = std::make_unique<MpiTransport>(MpiTransportLimits{.max_ops = max_ops});
  mpi->add_peer(coordinator, comm);
  return {.transport = std::move(mpi), .how = std::move(how)};
}

}  // namespace expertmesh
