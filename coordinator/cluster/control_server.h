// The coordinator's end of the control plane: takes the workers in, hears them, and watches over them, on a thread of
// its own (the monitor thread).
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/checkpoint/fingerprint.h"
#include "common/protocol/control_messages.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/secret_file.h"
#include "coordinator/cluster/worker_record.h"

namespace expertmesh {

class ControlServer {
 public:
  struct Options {
    std::size_t max_workers = 1;
    std::string address = "127.0.0.1";    // to listen on
    std::uint16_t port = 0;               // 0: any free one
    std::filesystem::path secret_file{};  // empty: a new one
    std::string isa;
    bool mixed_isas = false;   // who cannot run it is taken as well, and runs the best it can
    Fingerprint checkpoint{};  // workers with another one are refused; empty: any
    std::string dtype;         // of weights, that every worker must be able to run
    std::uint32_t nccl = 0;    // version that every worker must have; 0: any, or none
    std::chrono::milliseconds heartbeat_interval{25};
    std::chrono::milliseconds death_timeout{200};
    std::function<void(WorkerStatus const&)> on_change;  // one serves, is dead, or has left while others stay
    // What is wrong with what a worker says it has loaded; empty: nothing. On the monitor thread.
    std::function<std::string(WorkerId, control::Loaded const&)> check_loaded{};
    // A worker that serves has loaded another placement. On the monitor thread.
    std::function<void(WorkerId, Incarnation, PlacementEpoch)> on_moved{};
    std::function<void(WorkerId, Incarnation)> on_leaving{};  // it was asked to end; on the monitor thread
    // A worker has come by itself: its life, or none for want of a place. On the monitor thread; empty: such are
    // refused.
    std::function<std::optional<Life>()> on_join{};
  };

  // Throws NetworkError or FileError.
  explicit ControlServer(Options options);
  ~ControlServer();  // hangs up: workers that are still there end themselves

  [[nodiscard]] std::string address() const;  // "ADDRESS:PORT"
  [[nodiscard]] SecretFile const& secret() const;

  [[nodiscard]] std::vector<WorkerRecord> records() const;  // of those that were ever expected
  // A new life of a worker that is dead or was never there: its hello is awaited, no other's is taken.
  void expect(WorkerId worker, Incarnation incarnation);
  // Whether this life is over: it died, or left. One atomic load.
  [[nodiscard]] bool dead(WorkerId worker, Incarnation incarnation) const;
  [[nodiscard]] std::string death_reason(WorkerId worker) const;  // of its last death
  [[nodiscard]] bool called(Life life) const;                     // see WorkerRecord
  void declare_dead(WorkerId worker, Incarnation incarnation, std::string const& reason);

  // Until `done(records)` or the deadline; false at the deadline. done is called after every change.
  bool wait_until(std::chrono::steady_clock::time_point deadline,
                  std::function<bool(std::vector<WorkerRecord> const&)> const& done);

  // To all that live; these return at once.
  void idle();  // heartbeats get rarer
  void wake();
  void shutdown_workers();  // an end of a connection is no death from now on
  // To one life; nothing if it is over.
  void connect(Life life, control::Connect const& how);       // that came by itself
  void assign(Life life, control::Assign const& assignment);  // that has joined: it is loading now
  void hold(Life life, control::Hold const& placement);       // that serves
  void let_go(Life life);                                     // its end of a connection is no death from now on
  void kill_remaining();                                      // workers of this host that are still there

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
