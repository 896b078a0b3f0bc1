#include "worker/worker_loop.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {

WorkerLoop::WorkerLoop(Transport& transport, Doorbell& bell, WorkerLoopOptions const& options)
    : transport_(transport), bell_(bell), options_(options), rendezvous_(options.longest_wait) {}
WorkerLoop::~WorkerLoop() = default;

void WorkerLoop::add(std::shared_ptr<CoordinatorLane> lane) {
  bell_.ring([&] {
    new_lanes_.push_back(std::move(lane));
    has_new_ = true;
  });
}

WorkerLoop::Counts WorkerLoop::counts() const {
  return {.requests = num_requests_,
          .batches = num_batches_,
          .rows = num_rows_,
          .groups = num_groups_,
          .link_requests = num_link_requests_,
          .steps = num_steps_,
          .waits = num_waits_,
          .meetings = num_meetings_,
          .waited = std::chrono::duration_cast<std::chrono::microseconds>(Rendezvous::Duration(waited_))};
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
    else if (rendezvous_.holds_any() || std::ranges::any_of(lanes_, [](Lane const& lane) { return lane->polls(); }))
      pause_polling(options_.pause);
    else
      transport_.wait(options_.pause);
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
  rendezvous_.clear();
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

// Says to the rendezvous what is here, and lets it decide who is held. False: there is nobody to wait for.
bool WorkerLoop::gather() {
  if (options_.longest_wait.count() == 0 || lanes_.size() < 2) return false;
  std::optional<Rendezvous::Time> now;
  for (Lane const& lane : lanes_) {
    if (lane->polls()) continue;
    if (lane->mode() != ServingGate::Mode::serving) {
      rendezvous_.leave(lane->peer());
      continue;
    }
    lane->each_ready([&](Rendezvous::Stop const& stop) {
      if (!now) now = options_.now();
      rendezvous_.arrived(lane->peer(), stop, *now);
    });
  }
  if (!now) return true;
  rendezvous_.decide(*now);
  auto const& counts = rendezvous_.counts();
  num_waits_ = counts.waits;
  num_meetings_ = counts.meetings;
  waited_ = counts.waited.count();
  return true;
}

void WorkerLoop::serve() {
  if (!batch_) return;
  bool const gathers = gather();
  batch_->clear();
  bool any = false;
  for (Lane const& lane : lanes_) {
    if (gathers && rendezvous_.holds(lane->peer())) continue;
    guarded(lane, [&] { any |= lane->admit(*batch_); });
  }
  if (any) {
    batch_->run();
    num_requests_ += batch_->num_requests();
    num_rows_ += batch_->num_rows();
    num_groups_ += batch_->num_groups();
    ++num_batches_;
    if (gathers) rendezvous_.served(options_.now());
    for (Lane const& lane : lanes_) guarded(lane, [&] { lane->answer(*batch_); });
    transport_.deliver();
  }
  for (Lane const& lane : lanes_) {
    auto const before = lane->by_link();
    guarded(lane, [&] { lane->serve_by_link(*batch_); });
    num_link_requests_ += lane->by_link().requests - before.requests;
    num_steps_ += lane->by_link().steps - before.steps;
  }
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
  rendezvous_.leave(lane->peer());
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
