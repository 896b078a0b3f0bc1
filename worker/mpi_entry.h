// The way of this process into the MPI worlds of its coordinators. There is one MPI in a process, and one Open MPI name
// server for it: coordinators that share a worker share their name server, too. Any thread.
#pragma once
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "common/protocol/control_messages.h"
#include "common/transport/mpi_runtime.h"

namespace expertmesh {

class MpiEntry {
 public:
  // To the coordinator that spawned this process. Throws MpiError.
  MpiComm to_parent();
  // To one that it came to by itself: see connect_to_port(). Throws ModelError where the name server is another one.
  MpiComm connect(control::Connect const& how, std::function<void()> on_called, std::function<bool()> const& give_up);

  // "HOST:PORT" with the host as a number (IPv4). MPI changes the environment when it begins: not while this looks at
  // it. Throws NetworkError.
  std::string resolve(std::string const& address);

 private:
  std::mutex environment_;
  bool begun_ = false;                      // MPI; guarded by environment_, like the next
  std::optional<std::string> name_server_;  // of the first connection
};

}  // namespace expertmesh
