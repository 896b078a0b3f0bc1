#include "coordinator/cluster/cluster_transport.h"

#include <unistd.h>

#include <array>
#include <utility>

#include "common/base/log.h"
#include "coordinator/cluster/cluster.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMpi = 0;  // parts of the mixed transport
constexpr std::size_t kShm = 1;

std::string this_host() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

ClusterTransport::ClusterTransport(Options const& options)
    : options_(options), mpi_({.max_ops = options.max_mpi_ops}) {}

std::string ClusterTransport::offer(WorkerId worker, std::string const& host) {
  std::lock_guard const lock(mutex_);
  offered_.erase(worker);
  if (options_.choice == MessageTransport::mpi) return {};
  std::string why;
  if (host != this_host()) {
    why = "it is on host " + host;
  } else {
    try {
      return offered_.emplace(worker, Offered{.area = ShmArea::make(options_.shape)}).first->second.area.offer();
    } catch (ShmError const& error) {
      why = error.what();
      spdlog::warn("worker {}: messages go by MPI: {}", worker.value(), why);
    }
  }
  if (options_.choice == MessageTransport::shm)
    throw ClusterError("worker " + std::to_string(worker.value()) + ": no shared memory (--transport shm): " + why);
  return {};
}

std::string ClusterTransport::objection(WorkerId worker, std::string const& transport) {
  std::lock_guard const lock(mutex_);
  auto const found = offered_.find(worker);
  bool const by_shm = transport == "shm";
  if (by_shm && (found == offered_.end() || !(found->second.taken || found->second.area.accepted())))
    return "says that its messages go by shared memory, which does not show it";
  if (!by_shm && options_.choice == MessageTransport::shm)
    return "its messages do not go by shared memory (--transport shm): " + transport;
  if (found != offered_.end()) found->second.taken = by_shm;
  return {};
}

bool ClusterTransport::add_peer(PeerId peer, WorkerId worker, MpiComm comm) {
  std::lock_guard const lock(mutex_);
  auto const found = offered_.find(worker);
  bool const by_shm = found != offered_.end() && found->second.taken;
  if (by_shm) {
    found->second.area.withdraw();
    shm_.add_peer(peer, std::move(found->second.area));
  } else {
    mpi_.add_peer(peer, comm);
  }
  mixed_.add_peer(peer, by_shm ? kShm : kMpi);
  if (!by_shm && found != offered_.end()) offered_.erase(found);
  return by_shm;
}

std::size_t ClusterTransport::shared_bytes() const {
  return options_.choice == MessageTransport::mpi ? 0 : options_.shape.memory_bytes();
}

}  // namespace expertmesh
