// The data plane of a worker: take requests, run them through the experts, send the answers. Keeps no request state.
#pragma once
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/cores.h"
#include "common/transport/transport.h"
#include "worker/served_placement.h"
#include "worker/serving_gate.h"
#include "worker/worker_link.h"

namespace expertmesh {

// The coordinator sent something that cannot even be refused, or cannot be reached any more.
class WorkerLoopError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class WorkerLoop {
 public:
  // max_requests: that the coordinator sends before it has the first's answer; as many receives stay posted. link: by
  // which rows come that are not in their messages, or null.
  WorkerLoop(Transport& transport, PeerId coordinator, std::shared_ptr<ServedPlacement> first, std::size_t max_requests,
             PollPause pause, WorkerLink* link = nullptr);

  // Any thread: requests of this placement are served as well. With the first of them the placement before goes.
  void offer(std::shared_ptr<ServedPlacement> next);

  // Serves until the gate says stop; sleeps while it says idle. Throws WorkerLoopError.
  void run(ServingGate& gate);

 private:
  enum class Stage : std::uint8_t { receiving, ready, answering };
  struct Slot {
    Stage stage = Stage::receiving;
    OpId op;
    std::uint64_t posted = 0;  // counts the receives: they are matched in this order
    std::size_t request_bytes = 0;
    AlignedBuffer<std::byte> request;
    AlignedBuffer<std::byte> answer;
  };

  void post_receive(Slot& slot);
  bool poll();  // whether anything was completed
  void serve_ready();
  void serve_present();  // the ready requests that are not of a coming placement
  void serve_and_answer(std::span<Slot* const> slots);
  void serve(std::span<ServiceCall> calls);
  [[nodiscard]] bool is_ready(Slot const& slot) const;
  [[nodiscard]] bool is_of(Slot const& slot, ServedPlacement const& placement) const;
  [[nodiscard]] bool all_receiving() const;

  Transport& transport_;
  PeerId coordinator_;
  std::shared_ptr<ServedPlacement> present_;
  std::vector<std::shared_ptr<ServedPlacement>> coming_;  // in the order they were offered
  std::mutex mutex_;
  std::vector<std::shared_ptr<ServedPlacement>> offered_;  // guarded by mutex_; not yet among coming_
  WorkerLink* const link_;
  std::uint64_t num_posted_ = 0;
  PollPause pause_;  // between looks for the next request
  std::vector<Slot> slots_;
  std::vector<ServiceCall> calls_;
  std::vector<Slot*> called_;
  StaticStep* step_ = nullptr;  // of present_, while it is under way: nothing else is served until it is over
};

}  // namespace expertmesh
