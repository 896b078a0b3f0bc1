#include "worker/coordinator_lane.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/protocol/step_layout.h"

namespace expertmesh {

CoordinatorLane::CoordinatorLane(CoordinatorLaneOptions options, ServingGate const& gate,
                                 std::shared_ptr<ServedPlacement> first)
    : options_(std::move(options)), gate_(gate), slots_(options_.max_requests), present_(std::move(first)) {
  ExpertService const& service = present_->service;
  called_.reserve(slots_.size());
  for (Slot& slot : slots_) {
    slot.request = AlignedBuffer<std::byte>(service.max_request_bytes());
    slot.answer = AlignedBuffer<std::byte>(service.max_answer_bytes());
  }
}

void CoordinatorLane::offer(std::shared_ptr<ServedPlacement> next) {
  std::lock_guard const lock(mutex_);
  offered_.push_back(std::move(next));
}

void CoordinatorLane::wait_until_ended() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return has_ended_; });
  // Not on the loop's thread: giving memory back takes its time.
  present_.reset();
  coming_.clear();
  replaced_.clear();
  offered_.clear();
}

ServiceBatchLimits CoordinatorLane::batch_limits() const {
  return {.max_requests = options_.max_requests,
          .max_entries = options_.max_requests * present_->service.max_entries()};
}

void CoordinatorLane::begin(Transport& transport) {
  if (options_.on_begin) options_.on_begin();
  transport_ = &transport;
  for (Slot& slot : slots_) {
    transport.register_buffer(slot.request.span());
    transport.register_buffer(slot.answer.span());
    post_receive(slot);
  }
}

void CoordinatorLane::post_receive(Slot& slot) {
  slot.stage = Stage::receiving;
  slot.posted = ++num_posted_;
  slot.op = transport_->post_recv(options_.peer, MessageTag(kRequestTag), slot.request.span());
}

void CoordinatorLane::take(Completion const& completion) {
  auto const slot = std::ranges::find_if(slots_, [&](Slot const& s) {
    return (s.stage == Stage::receiving || s.stage == Stage::answering) && s.op == completion.op;
  });
  EM_CHECK(slot != slots_.end(), "op " << completion.op << " is of no message of peer " << options_.peer);
  Stage const stage = std::exchange(slot->stage, Stage::none);
  if (has_ended_) return;  // by this thread
  if (completion.status != OpStatus::ok) throw WorkerLoopError("the transport lost the coordinator");
  if (stage == Stage::answering) return post_receive(*slot);
  slot->stage = Stage::ready;
  slot->request_bytes = completion.bytes;
}

void CoordinatorLane::progress() {
  if (options_.link) options_.link->poll();
  if (step_ && !step_->advance()) step_ = nullptr;
}

bool CoordinatorLane::admit(ServiceBatch& batch) {
  if (options_.link) return false;
  return serve_ready([&](std::span<Slot* const> slots) {
    for (Slot* const slot : slots) present_->service.admit(slot->call, batch);
  });
}

void CoordinatorLane::answer(ServiceBatch const& batch) {
  for (Slot& slot : slots_) {
    if (slot.stage != Stage::called) continue;
    ExpertService::finish(slot.call, batch);
    post_answer(slot);
  }
  replaced_.clear();
}

// One by one: what an answer promises may be asked for before the next rows come.
bool CoordinatorLane::serve_by_link(ServiceBatch& batch) {
  if (!options_.link || step_) return false;
  return serve_ready([&](std::span<Slot* const> slots) {
    for (Slot* const slot : slots) {
      if (step_) {
        slot->stage = Stage::ready;  // behind it
        continue;
      }
      if (is_step(slot->call.request)) {
        if (present_->step->begin(slot->call)) step_ = &*present_->step;
        ++by_link_.steps;
      } else {
        present_->service.serve({&slot->call, 1}, batch);
        ++by_link_.requests;
      }
      post_answer(*slot);
      // Its rows may be in the link all the same, where the next would be taken for them.
      if (slot->call.error.fault != WireFault::none)
        throw WorkerLoopError("refused a request on a link: " + describe(slot->call.error));
    }
    replaced_.clear();
  });
}

// serve(slots) for the ready requests of the present placement, and then of each one after it whose requests are there.
template <class Serve>
bool CoordinatorLane::serve_ready(Serve const& serve) {
  if (std::ranges::none_of(slots_, [this](Slot const& slot) { return is_ready(slot); })) return false;
  take_offers();
  do {
    called_.clear();
    for (Slot& slot : slots_)
      if (is_ready(slot) &&
          std::ranges::none_of(coming_, [&](auto const& placement) { return is_of(slot, *placement); }))
        called_.push_back(&slot);
    std::ranges::sort(called_, {}, &Slot::posted);
    for (Slot* const slot : called_) {
      slot->stage = Stage::called;
      slot->call = {};
      slot->call.request = request_of(*slot);
      slot->call.answer = slot->answer.span();
    }
    if (!called_.empty()) serve(std::span<Slot* const>(called_));
  } while (!step_ && next_placement());
  return true;
}

void CoordinatorLane::take_offers() {
  std::lock_guard const lock(mutex_);
  coming_.insert(coming_.end(), offered_.begin(), offered_.end());
  offered_.clear();
}

// Whether requests of a later placement are there, which is the present one now.
bool CoordinatorLane::next_placement() {
  auto const next = std::ranges::find_if(coming_, [&](auto const& placement) {
    return std::ranges::any_of(slots_, [&](Slot const& slot) { return is_of(slot, *placement); });
  });
  if (next == coming_.end()) return false;
  replaced_.push_back(std::exchange(present_, *next));
  coming_.erase(coming_.begin(), next + 1);
  return true;
}

// One that was reported before an earlier one waits for it: placements follow each other in the order of requests, and
// rows that come by a link are those of the next request.
bool CoordinatorLane::is_ready(Slot const& slot) const {
  return slot.stage == Stage::ready && std::ranges::none_of(slots_, [&](Slot const& other) {
           return other.stage == Stage::receiving && other.posted < slot.posted;
         });
}

bool CoordinatorLane::is_of(Slot const& slot, ServedPlacement const& placement) const {
  if (!is_ready(slot)) return false;
  auto const id = exchange_of(request_of(slot));
  return id && PlacementEpoch(id->placement_epoch) == placement.service.epoch();
}

// All placements are of one model. What is wrong with a request is found when it is admitted.
Rendezvous::Stop CoordinatorLane::stop_of(Slot const& slot) const {
  auto const id = exchange_of(request_of(slot));
  if (!id) return {.layer = Rendezvous::kUnknown, .micro_batch = 0};
  auto const& layers = present_->store.layers();
  auto const layer = std::ranges::find(layers, id->layer, &HeldLayer::layer);
  return {.layer = layer == layers.end() ? Rendezvous::kUnknown : static_cast<std::size_t>(layer - layers.begin()),
          .micro_batch = id->micro_batch};
}

void CoordinatorLane::post_answer(Slot& slot) {
  ServiceCall const& call = slot.call;
  if (call.error.fault != WireFault::none) spdlog::error("request refused: {}", describe(call.error));
  if (call.answer_bytes == 0) throw WorkerLoopError("unreadable request: " + describe(call.error));
  slot.stage = Stage::answering;
  slot.op = transport_->post_send(options_.peer, MessageTag(call.attempt),
                                  std::span<std::byte const>(slot.answer.span()).first(call.answer_bytes));
}

// An answer still on its way needs our polling to leave.
bool CoordinatorLane::quiet() const {
  return !step_ && std::ranges::all_of(slots_, [](Slot const& slot) { return slot.stage == Stage::receiving; });
}

void CoordinatorLane::fail(std::string const& reason) {
  if (options_.on_failure) options_.on_failure(reason);
}

void CoordinatorLane::end() {
  step_ = nullptr;
  {
    std::lock_guard const lock(mutex_);
    has_ended_ = true;
  }
  ended_.notify_all();
}

bool CoordinatorLane::at_rest() const {
  return std::ranges::none_of(
      slots_, [](Slot const& slot) { return slot.stage == Stage::receiving || slot.stage == Stage::answering; });
}

}  // namespace expertmesh
