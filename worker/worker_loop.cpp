#include "worker/worker_loop.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {

WorkerLoop::WorkerLoop(Transport& transport, Doorbell& bell, PollPause pause)
    : transport_(transport), bell_(bell), pause_(pause) {}
WorkerLoop::~WorkerLoop() = default;

void WorkerLoop::add(std::shared_ptr<CoordinatorLane> lane) {
  bell_.ring([&] {
    new_lanes_.push_back(std::move(lane));
    has_new_ = true;
  });
}

WorkerLoop::Counts WorkerLoop::counts() const {
  return {.requests = num_requests_, .batches = num_batches_, .groups = num_groups_};
}

void WorkerLoop::run(WhenEmpty when_empty) {
  for (;;) {
    if (has_new_) take_in();
    bool const busy = poll();
    for (Lane const& lane : lanes_) guarded(lane, [&] { lane->progress(); });
    serve();
    drop_stopped();
    if (lanes_.empty() && !has_new_ && when_empty == WhenEmpty::end) return;
    bool const asleep = std::ranges::all_of(
        lanes_, [](Lane const& lane) { return lane->mode() == ServingGate::Mode::idle && lane->quiet(); });
    if (asleep)
      sleep_while_idle();
    else if (busy)
      continue;
    else if (std::ranges::any_of(
                 lanes_, &CoordinatorLane::polls, [](Lane const& lane) -> auto& { return *lane; }))
      pause_polling(pause_);
    else
      transport_.wait(pause_);
  }
}

void WorkerLoop::sleep_while_idle() {
  bell_.sleep_until([this] {
    return has_new_ ||
           std::ranges::any_of(lanes_, [](Lane const& lane) { return lane->mode() != ServingGate::Mode::idle; });
  });
}

void WorkerLoop::take_in() {
  std::vector<Lane> added;
  bell_.ring([&] {
    added = std::exchange(new_lanes_, {});
    has_new_ = false;
  });
  for (Lane const& lane : added) {
    lanes_.push_back(lane);
    guarded(lane, [&] { lane->begin(transport_); });
  }
  ServiceBatchLimits all{.max_requests = 0, .max_entries = 0};
  for (Lane const& lane : lanes_) {
    all.max_requests += lane->batch_limits().max_requests;
    all.max_entries += lane->batch_limits().max_entries;
  }
  if (!batch_ || batch_->limits().max_requests < all.max_requests || batch_->limits().max_entries < all.max_entries)
    batch_.emplace(lanes_.back()->present().service.make_batch(all));
  failed_.reserve(lanes_.size());
  num_served_ = lanes_.size();
}

bool WorkerLoop::poll() {
  std::array<Completion, 16> done;
  std::size_t const count = transport_.poll(done);
  for (Completion const& completion : std::span(done).first(count)) {
    auto lane = std::ranges::find(lanes_, completion.peer, [](Lane const& l) { return l->peer(); });
    if (lane == lanes_.end()) {
      lane = std::ranges::find(former_, completion.peer, [](Lane const& l) { return l->peer(); });
      EM_CHECK(lane != former_.end(), "a message of peer " << completion.peer << ", which has no lane");
    }
    guarded(*lane, [&] { (*lane)->take(completion); });
  }
  if (count != 0 && !former_.empty()) {
    std::erase_if(former_, [](Lane const& lane) { return lane->at_rest(); });
    num_unrested_ = former_.size();
  }
  return count != 0;
}

void WorkerLoop::serve() {
  if (!batch_) return;
  batch_->clear();
  bool any = false;
  for (Lane const& lane : lanes_) guarded(lane, [&] { any |= lane->admit(*batch_); });
  if (any) {
    batch_->run();
    num_requests_ += batch_->num_requests();
    num_groups_ += batch_->num_groups();
    ++num_batches_;
    for (Lane const& lane : lanes_) guarded(lane, [&] { lane->answer(*batch_); });
  }
  for (Lane const& lane : lanes_) guarded(lane, [&] { lane->serve_by_link(*batch_); });
}

void WorkerLoop::drop_stopped() {
  for (std::size_t i = 0; i < lanes_.size();) {
    Lane const lane = lanes_[i];
    bool const failed = std::ranges::find(failed_, lane) != failed_.end();
    if (!failed && lane->mode() != ServingGate::Mode::stopped) {
      ++i;
      continue;
    }
    lanes_.erase(lanes_.begin() + static_cast<std::ptrdiff_t>(i));
    end(lane);
  }
  failed_.clear();
}

void WorkerLoop::end(Lane const& lane) {
  transport_.fence(lane->peer());
  if (!lane->at_rest()) former_.push_back(lane);
  num_served_ = lanes_.size();
  num_unrested_ = former_.size();
  lane->end();  // last: whoever waits for it may end the process
}

// What goes wrong for one coordinator is nobody else's business.
template <class Step>
void WorkerLoop::guarded(Lane const& lane, Step const& step) {
  if (std::ranges::find(failed_, lane) != failed_.end()) return;
  try {
    step();
  } catch (WorkerLoopError const& error) {
    failed_.push_back(lane);
    lane->fail(error.what());
  }
}

}  // namespace expertmesh
