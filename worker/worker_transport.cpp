#include "worker/worker_transport.h"

#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMpi = 0;  // parts of the mixed transport
constexpr std::size_t kShm = 1;

}  // namespace

DataPath open_data_path(std::string const& offer, MpiComm comm, std::size_t most_bytes) {
  DataPath path{.area = std::nullopt, .comm = comm, .how = "mpi"};
  if (offer.empty()) return path;
  try {
    ShmArea area = ShmArea::open(offer);
    if (area.max_message_bytes() < most_bytes)
      throw ShmError("shared memory", 0, "no room for messages of " + std::to_string(most_bytes) + " bytes", offer);
    area.accept();
    spdlog::info("messages by shared memory, at most {} bytes of it", area.size());
    path.area.emplace(std::move(area));
    path.how = "shm";
  } catch (ShmError const& error) {
    spdlog::warn("messages by MPI, no memory is shared: {}", error.what());
    path.how = std::string("mpi (") + error.what() + ")";
  }
  return path;
}

WorkerTransports::WorkerTransports(std::size_t max_ops) : mpi_({.max_ops = max_ops}) {}

void WorkerTransports::add_peer(PeerId peer, DataPath&& path) {
  if (path.area)
    shm_.add_peer(peer, std::move(*path.area));
  else
    mpi_.add_peer(peer, path.comm);
  mixed_.add_peer(peer, path.area ? kShm : kMpi);
}

}  // namespace expertmesh
