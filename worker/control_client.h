// A worker's end of the control plane towards one coordinator, on a thread of its own: hello, assignment, heartbeats,
// idle and wake. It ends once: when the coordinator says so, hangs up, or talks nonsense.
#pragma once
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "common/protocol/control_messages.h"
#include "worker/serving_gate.h"

namespace expertmesh {

// It has ended while something was awaited from it.
class CoordinatorGone : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the process would end with if this were its only coordinator.
enum class ExitCode : int {
  told = 0,     // by the coordinator
  lost = 1,     // trying again may help
  refused = 2,  // it does not
};

struct ControlEnd {
  ExitCode code = ExitCode::lost;
  bool for_good = false;  // it is not to be looked for again, not even while the process has other coordinators
};

class ControlClient {
 public:
  struct Handlers {
    // On the control thread, once. Nobody waits for it: it may end the process.
    std::function<void(ExitCode code)> on_end;
    std::function<void()> on_asked_to_end{};  // this process, by a signal
  };

  // Connects to "host:port" and keeps the connection from then on. Says hello when it is challenged, and takes nothing
  // from a coordinator that does not know the secret either. bell: of the gate; must outlive it. Throws NetworkError.
  ControlClient(std::string const& address, std::string secret, control::Hello hello, Doorbell& bell,
                Handlers handlers);
  ~ControlClient();

  // Each blocks until the coordinator has said so. Throw CoordinatorGone.
  control::Welcome wait_for_welcome();
  control::Connect wait_for_connect();  // only a worker that came by itself is told
  control::Assign wait_for_assign();    // what to load; heartbeats begin
  ControlEnd wait_for_end();

  // From now on; on the control thread, which must not be kept: another placement to load.
  void on_hold(std::function<void(control::Hold)> handler);

  void send(control::Message const& message);  // any thread; nothing happens once it has ended
  // Last words, from any thread: it ends with this code when the coordinator hangs up.
  void fail(control::FailureKind kind, std::string const& reason, ExitCode code);

  void hang_up();                    // any thread; has no effect on one that has failed, whose last words are to arrive
  [[nodiscard]] bool ended() const;  // any thread
  [[nodiscard]] ServingGate& gate();  // says stop when it has ended

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
