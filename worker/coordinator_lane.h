// What the loop of the data plane knows of one coordinator: its messages that are under way, and the placements that it
// has made. Whatever one coordinator does or leaves undone stays in its lane.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/transport/transport.h"
#include "worker/rendezvous.h"
#include "worker/served_placement.h"
#include "worker/serving_gate.h"
#include "worker/worker_link.h"

namespace expertmesh {

// The coordinator sent something that cannot even be refused, or cannot be reached any more.
class WorkerLoopError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct CoordinatorLaneOptions {
  PeerId peer;                   // of the loop's transport; never used again
  std::size_t max_requests = 1;  // that it sends before it has the first's answer; as many receives stay posted
  WorkerLink* link = nullptr;    // by which rows come that are not in their messages, or null
  // On the loop's thread, which they must not keep: before the first message; when the lane has failed, before it ends.
  std::function<void()> on_begin{};
  std::function<void(std::string const& reason)> on_failure{};
};

class CoordinatorLane {
 public:
  // gate: of this coordinator; the lane ends when it says stop. Link and gate must live until the lane has ended.
  CoordinatorLane(CoordinatorLaneOptions options, ServingGate const& gate, std::shared_ptr<ServedPlacement> first);

  // ---- any thread
  // Requests of this placement are served as well. With the first of them the placement before goes.
  void offer(std::shared_ptr<ServedPlacement> next);
  // When it has, the loop has no more use for gate, link and placements, which go here.
  void wait_until_ended();

  // ---- the loop's. What throws WorkerLoopError ends the lane.
  [[nodiscard]] ServingGate::Mode mode() const { return gate_.mode(); }
  [[nodiscard]] PeerId peer() const { return options_.peer; }
  [[nodiscard]] ServiceBatchLimits batch_limits() const;
  [[nodiscard]] ServedPlacement const& present() const { return *present_; }
  [[nodiscard]] bool polls() const { return options_.link != nullptr; }  // it wants to be polled

  void begin(Transport& transport);
  void take(Completion const& completion);
  void progress();  // what goes by the link
  // use(Rendezvous::Stop) for each request that is there to be admitted.
  template <class Use>
  void each_ready(Use const& use) const {
    for (Slot const& slot : slots_)
      if (is_ready(slot)) use(stop_of(slot));
  }
  // Adds what is there to the batch, of which it answers when that has run. True: something is there. With a link it
  // adds nothing and serves by itself.
  bool admit(ServiceBatch& batch);
  void answer(ServiceBatch const& batch);
  bool serve_by_link(ServiceBatch& batch);
  // Served by the link so far.
  struct ByLink {
    std::size_t requests = 0;
    std::size_t steps = 0;  // in the static form
  };
  [[nodiscard]] ByLink const& by_link() const { return by_link_; }
  // Nothing is to be done until its next message.
  [[nodiscard]] bool quiet() const;

  void fail(std::string const& reason);
  void end();                          // its peer has been fenced, or has never been there
  [[nodiscard]] bool at_rest() const;  // has ended, and the transport has given all buffers back

 private:
  enum class Stage : std::uint8_t { none, receiving, ready, called, answering };
  struct Slot {
    Stage stage = Stage::none;
    OpId op;
    std::uint64_t posted = 0;  // counts the receives: they are matched in this order
    AlignedBuffer<std::byte> request;
    AlignedBuffer<std::byte> answer;
    std::size_t request_bytes = 0;
    ServiceCall call;
  };

  void post_receive(Slot& slot);
  void take_offers();
  bool next_placement();
  template <class Serve>
  bool serve_ready(Serve const& serve);
  void post_answer(Slot& slot);
  [[nodiscard]] bool is_ready(Slot const& slot) const;
  [[nodiscard]] Rendezvous::Stop stop_of(Slot const& slot) const;
  [[nodiscard]] bool is_of(Slot const& slot, ServedPlacement const& placement) const;
  [[nodiscard]] std::span<std::byte const> request_of(Slot const& slot) const {
    return std::span<std::byte const>(slot.request.span()).first(slot.request_bytes);
  }

  CoordinatorLaneOptions const options_;
  ServingGate const& gate_;
  Transport* transport_ = nullptr;
  std::vector<Slot> slots_;
  std::uint64_t num_posted_ = 0;
  std::vector<Slot*> called_;  // in the order in which their receives were posted

  std::shared_ptr<ServedPlacement> present_;
  std::vector<std::shared_ptr<ServedPlacement>> coming_;    // in the order they were offered
  std::vector<std::shared_ptr<ServedPlacement>> replaced_;  // whose last calls are in the batch
  ByLink by_link_;
  StaticStep* step_ = nullptr;  // of present_, while it is under way: nothing else is served until it is over

  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<std::shared_ptr<ServedPlacement>> offered_;  // guarded by mutex_, like the next; not yet among coming_
  bool has_ended_ = false;
};

}  // namespace expertmesh
