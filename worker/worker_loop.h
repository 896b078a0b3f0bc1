// The data plane of a worker, on one thread: take requests, run them through the experts, send the answers. Keeps no
// request state. Coordinators have a lane each; what is there of all of them together is one batch. Whoever has nothing
// there is not waited for, but where it is asked for, and for a moment (rendezvous.h). Lanes come and go while others
// are served.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/cores.h"
#include "common/transport/transport.h"
#include "worker/coordinator_lane.h"
#include "worker/rendezvous.h"

namespace expertmesh {

struct WorkerLoopOptions {
  PollPause pause = PollPause::yield;  // between looks for the next request
  // The most that a request is kept for those of other coordinators, beside the batch that is under way then; 0: no
  // request is. Those of lanes with a link never are.
  std::chrono::microseconds longest_wait{0};
  Rendezvous::Time (*now)() = &Rendezvous::Clock::now;  // another one in tests
};

class WorkerLoop {
 public:
  // bell: of the gates of all lanes. Both must outlive it.
  WorkerLoop(Transport& transport, Doorbell& bell, WorkerLoopOptions const& options);
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
    std::size_t rows = 0;
    std::size_t groups = 0;         // of rows for one expert, in all batches
    std::size_t link_requests = 0;  // whose rows came by a link; not in the four above, like
    std::size_t steps = 0;          // in the static form
    std::size_t waits = 0;          // of requests for those of other coordinators
    std::size_t meetings = 0;       // waits that another's request ended
    std::chrono::microseconds waited{0};
  };
  [[nodiscard]] Counts counts() const;

 private:
  using Lane = std::shared_ptr<CoordinatorLane>;

  void take_in();
  void drop_stopped();
  bool poll();  // whether anything was completed
  bool gather();
  void serve();
  void end(Lane const& lane);
  template <class Step>
  void guarded(Lane const& lane, Step const& step);
  void sleep_while_idle();

  Transport& transport_;
  Doorbell& bell_;
  WorkerLoopOptions const options_;
  Rendezvous rendezvous_;
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
  std::atomic<std::size_t> num_rows_ = 0;
  std::atomic<std::size_t> num_groups_ = 0;
  std::atomic<std::size_t> num_link_requests_ = 0;
  std::atomic<std::size_t> num_steps_ = 0;
  std::atomic<std::size_t> num_waits_ = 0;
  std::atomic<std::size_t> num_meetings_ = 0;
  std::atomic<Rendezvous::Duration::rep> waited_ = 0;
};

}  // namespace expertmesh
