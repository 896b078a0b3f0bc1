#include "worker/mpi_entry.h"

#include <cstdlib>
#include <utility>

#include "common/base/error.h"
#include "common/protocol/control_connection.h"

namespace expertmesh {

MpiComm MpiEntry::to_parent() {
  std::lock_guard const lock(environment_);
  if (!std::exchange(begun_, true)) init_mpi();
  return parent_comm();
}

MpiComm MpiEntry::connect(control::Connect const& how, std::function<void()> on_called,
                          std::function<bool()> const& give_up) {
  {
    std::lock_guard const lock(environment_);
    if (!begun_) {
      setenv("OMPI_MCA_pmix_server_uri", how.name_server.c_str(), 1);
      init_mpi();
      begun_ = true;
      name_server_ = how.name_server;
    }
    if (name_server_ != how.name_server)
      throw ModelError(
          "another Open MPI name server than that of the worker's other coordinators (serve --name-server)");
  }
  return connect_to_port(how.port, std::move(on_called), give_up);
}

std::string MpiEntry::resolve(std::string const& address) {
  std::lock_guard const lock(environment_);
  return resolve_address(address);
}

}  // namespace expertmesh
