// The data plane of a worker, on one thread: take requests, run them through the experts, send the answers. Keeps no
// request state. Coordinators have a lane each; what is there of all of them together is one batch, and whoever has
// nothing there is not waited for. Lanes come and go while others are served.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/cores.h"
#include "common/transport/transport.h"
#include "worker/coordinator_lane.h"

namespace expertmesh {

class WorkerLoop {
 public:
  // bell: of the gates of all lanes. Both must outlive it.
  WorkerLoop(Transport& transport, Doorbell& bell, PollPause pause);
  ~WorkerLoop();
  WorkerLoop(WorkerLoop const&) = delete;
  WorkerLoop& operator=(WorkerLoop const&) = delete;

  // Any thread: it is served from the next round on. All lanes' placements have the same model, and run on one Exec.
  void add(std::shared_ptr<CoordinatorLane> lane);

  // Serves; sleeps while every gate says idle. Ends a lane when its gate says stop, and when it has failed.
  enum class WhenEmpty : std::uint8_t { wait, end };  // no lane is left
  void run(WhenEmpty when_empty);

  // ---- any thread
  [[nodiscard]] std::size_t num_served() const { return num_served_.load(std::memory_order_relaxed); }  // lanes
  // Lanes that have ended, and whose buffers the transport has not given back.
  [[nodiscard]] std::size_t num_unrested() const { return num_unrested_.load(std::memory_order_relaxed); }
  struct Counts {
    std::size_t requests = 0;
    std::size_t batches = 0;  // in which they were served
    std::size_t groups = 0;   // of rows for one expert, in all batches
  };
  [[nodiscard]] Counts counts() const;

 private:
  using Lane = std::shared_ptr<CoordinatorLane>;

  void take_in();
  void drop_stopped();
  bool poll();  // whether anything was completed
  void serve();
  void end(Lane const& lane);
  template <class Step>
  void guarded(Lane const& lane, Step const& step);
  void sleep_while_idle();

  Transport& transport_;
  Doorbell& bell_;
  PollPause const pause_;  // between looks for the next request
  std::vector<Lane> lanes_;
  std::vector<Lane> failed_;  // since the last look
  std::vector<Lane> former_;  // that have ended, and are not at rest
  std::optional<ServiceBatch> batch_;
  std::vector<Lane> new_lanes_;  // changed between rings of bell_
  std::atomic<bool> has_new_ = false;

  std::atomic<std::size_t> num_served_ = 0;
  std::atomic<std::size_t> num_unrested_ = 0;
  std::atomic<std::size_t> num_requests_ = 0;
  std::atomic<std::size_t> num_batches_ = 0;
  std::atomic<std::size_t> num_groups_ = 0;
};

}  // namespace expertmesh
