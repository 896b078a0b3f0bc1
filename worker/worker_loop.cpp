#include "worker/worker_loop.h"

#include <algorithm>
#include <array>

#include "common/base/log.h"
#include "common/protocol/step_layout.h"

namespace expertmesh {

WorkerLoop::WorkerLoop(Transport& transport, PeerId coordinator, std::shared_ptr<ServedPlacement> first,
                       std::size_t max_requests, PollPause pause, WorkerLink* link)
    : transport_(transport),
      coordinator_(coordinator),
      present_(std::move(first)),
      link_(link),
      pause_(pause),
      slots_(max_requests) {
  ExpertService const& service = present_->service;
  calls_.reserve(max_requests);
  called_.reserve(max_requests);
  for (Slot& slot : slots_) {
    slot.request = AlignedBuffer<std::byte>(service.max_request_bytes());
    slot.answer = AlignedBuffer<std::byte>(service.max_answer_bytes());
    transport_.register_buffer(slot.request.span());
    transport_.register_buffer(slot.answer.span());
    post_receive(slot);
  }
}

void WorkerLoop::post_receive(Slot& slot) {
  slot.stage = Stage::receiving;
  slot.posted = ++num_posted_;
  slot.op = transport_.post_recv(coordinator_, MessageTag(kRequestTag), slot.request.span());
}

void WorkerLoop::offer(std::shared_ptr<ServedPlacement> next) {
  std::lock_guard const lock(mutex_);
  offered_.push_back(std::move(next));
}

void WorkerLoop::run(ServingGate& gate) {
  for (;;) {
    bool const busy = poll();
    if (link_) link_->poll();
    if (step_ && !step_->advance()) step_ = nullptr;
    if (!step_) serve_ready();
    switch (gate.mode()) {
      case ServingGate::Mode::stopped:
        return;
      case ServingGate::Mode::idle:
        // An answer still on its way needs our polling to leave.
        if (all_receiving() && !step_) gate.sleep_while_idle();
        break;
      case ServingGate::Mode::loading:
      case ServingGate::Mode::serving:
        if (!busy && link_) pause_polling(pause_);  // it wants to be polled
        if (!busy && !link_) transport_.wait(pause_);
        break;
    }
  }
}

bool WorkerLoop::poll() {
  std::array<Completion, 8> done;
  std::size_t const count = transport_.poll(done);
  for (Completion const& completion : std::span(done).first(count)) {
    auto const slot = std::ranges::find(slots_, completion.op, &Slot::op);
    if (completion.status != OpStatus::ok || slot == slots_.end())
      throw WorkerLoopError("the transport lost the coordinator");
    if (slot->stage == Stage::receiving) {
      slot->stage = Stage::ready;
      slot->request_bytes = completion.bytes;
    } else {
      post_receive(*slot);
    }
  }
  return count != 0;
}

void WorkerLoop::serve_ready() {
  if (std::ranges::none_of(slots_, [this](Slot const& slot) { return is_ready(slot); })) return;
  {
    std::lock_guard const lock(mutex_);
    coming_.insert(coming_.end(), offered_.begin(), offered_.end());
    offered_.clear();
  }
  serve_present();
  while (!step_) {
    auto const next = std::ranges::find_if(coming_, [&](auto const& placement) {
      return std::ranges::any_of(slots_, [&](Slot const& slot) { return is_of(slot, *placement); });
    });
    if (next == coming_.end()) return;
    present_ = *next;
    coming_.erase(coming_.begin(), next + 1);
    serve_present();
  }
}

// Rows that come by the link are those of the next request: one that was reported before an earlier one waits for it.
bool WorkerLoop::is_ready(Slot const& slot) const {
  return slot.stage == Stage::ready && (!link_ || std::ranges::none_of(slots_, [&](Slot const& other) {
           return other.stage == Stage::receiving && other.posted < slot.posted;
         }));
}

bool WorkerLoop::is_of(Slot const& slot, ServedPlacement const& placement) const {
  return is_ready(slot) && epoch_of(std::span<std::byte const>(slot.request.span()).first(slot.request_bytes)) ==
                               placement.service.epoch();
}

void WorkerLoop::serve_present() {
  called_.clear();
  for (Slot& slot : slots_) {
    if (!is_ready(slot)) continue;
    if (std::ranges::any_of(coming_, [&](auto const& placement) { return is_of(slot, *placement); })) continue;
    called_.push_back(&slot);
  }
  if (called_.empty()) return;
  std::ranges::sort(called_, {}, &Slot::posted);
  // With a link one by one: what an answer promises may be asked for before the next rows come.
  std::size_t const at_once = link_ ? 1 : called_.size();
  for (std::size_t first = 0; first < called_.size() && !step_; first += at_once)
    serve_and_answer(std::span(called_).subspan(first, at_once));
}

void WorkerLoop::serve_and_answer(std::span<Slot* const> slots) {
  calls_.clear();
  for (Slot* const slot : slots) {
    ServiceCall call;
    call.request = std::span(slot->request.span()).first(slot->request_bytes);
    call.answer = slot->answer.span();
    calls_.push_back(call);
  }
  serve(calls_);
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    ServiceCall const& call = calls_[i];
    if (call.error.fault != WireFault::none) spdlog::error("request refused: {}", describe(call.error));
    if (call.answer_bytes == 0) throw WorkerLoopError("unreadable request: " + describe(call.error));
    slots[i]->stage = Stage::answering;
    slots[i]->op = transport_.post_send(coordinator_, MessageTag(call.attempt),
                                        std::span(slots[i]->answer.span()).first(call.answer_bytes));
    // Its rows may be in the link all the same, where the next would be taken for them.
    if (link_ && call.error.fault != WireFault::none)
      throw WorkerLoopError("refused a request on a link: " + describe(call.error));
  }
}

void WorkerLoop::serve(std::span<ServiceCall> calls) {
  if (!link_ || !is_step(calls.front().request)) return present_->service.serve(calls);
  if (present_->step->begin(calls.front())) step_ = &*present_->step;
}

bool WorkerLoop::all_receiving() const {
  return std::ranges::all_of(slots_, [](Slot const& slot) { return slot.stage == Stage::receiving; });
}

}  // namespace expertmesh
