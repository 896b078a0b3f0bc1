#include "worker/worker_loop.h"

#include <algorithm>
#include <array>

#include "common/base/log.h"

namespace expertmesh {

WorkerLoop::WorkerLoop(Transport& transport, PeerId coordinator, ExpertService& service, std::size_t max_requests,
                       PollPause pause)
    : transport_(transport), coordinator_(coordinator), service_(service), pause_(pause), slots_(max_requests) {
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
  slot.op = transport_.post_recv(coordinator_, MessageTag(kRequestTag), slot.request.span());
}

void WorkerLoop::run(ServingGate& gate) {
  for (;;) {
    bool const busy = poll();
    serve_ready();
    switch (gate.mode()) {
      case ServingGate::Mode::stopped:
        return;
      case ServingGate::Mode::idle:
        // An answer still on its way needs our polling to leave.
        if (all_receiving()) gate.sleep_while_idle();
        break;
      case ServingGate::Mode::loading:
      case ServingGate::Mode::serving:
        if (!busy) pause_polling(pause_);
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
  calls_.clear();
  called_.clear();
  for (Slot& slot : slots_) {
    if (slot.stage != Stage::ready) continue;
    ServiceCall call;
    call.request = std::span(slot.request.span()).first(slot.request_bytes);
    call.answer = slot.answer.span();
    calls_.push_back(call);
    called_.push_back(&slot);
  }
  if (calls_.empty()) return;
  service_.serve(calls_);
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    ServiceCall const& call = calls_[i];
    if (call.error.fault != WireFault::none) spdlog::error("request refused: {}", describe(call.error));
    if (call.answer_bytes == 0) throw WorkerLoopError("unreadable request: " + describe(call.error));
    called_[i]->stage = Stage::answering;
    called_[i]->op = transport_.post_send(coordinator_, MessageTag(call.attempt),
                                          std::span(called_[i]->answer.span()).first(call.answer_bytes));
  }
}

bool WorkerLoop::all_receiving() const {
  return std::ranges::all_of(slots_, [](Slot const& slot) { return slot.stage == Stage::receiving; });
}

}  // namespace expertmesh
