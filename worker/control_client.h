// A worker's end of the control plane, on a thread of its own: hello, assignment, heartbeats, idle and wake. When the
// coordinator is gone the process ends at once: nobody else needs it.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "common/protocol/control_messages.h"
#include "worker/serving_gate.h"

namespace expertmesh {

class ControlClient {
 public:
  // Connects to "host:port" and keeps the connection from then on. Says hello when it is challenged, and takes nothing
  // from a coordinator that does not know the secret either. Throws NetworkError.
  ControlClient(std::string const& address, std::string secret, control::Hello hello);
  ~ControlClient();

  // Each blocks until the coordinator has said so. A refusal ends the process.
  control::Welcome wait_for_welcome();
  control::Connect wait_for_connect();  // only a worker that came by itself is told
  control::Assign wait_for_assign();    // what to load; heartbeats begin

  // From now on; on the control thread, which must not be kept: another placement to load.
  void on_hold(std::function<void(control::Hold)> handler);

  void send(control::Message const& message);  // any thread
  // Last words: sends them and ends the process with this exit code once they are out.
  [[noreturn]] void fail(control::FailureKind kind, std::string const& reason, int exit_code);

  [[nodiscard]] control::Hello const& hello() const;
  [[nodiscard]] ServingGate& gate();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
