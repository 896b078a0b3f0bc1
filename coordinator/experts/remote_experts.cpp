#include "coordinator/experts/remote_experts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <span>
#include <utility>

#include "common/base/check.h"
#include "common/kernels/rows.h"
#include "common/moe/dispatch_plan.h"
#include "common/protocol/dispatch_layout.h"
#include "coordinator/experts/exchange_slot.h"

namespace expertmesh {
namespace {

std::size_t max_hidden(ExpertModelSpec const& model) {
  std::size_t hidden = 0;
  for (auto const& layer : model.layers) hidden = std::max(hidden, layer.hidden);
  return hidden;
}

std::uint64_t random_id() {
  std::random_device device;
  return static_cast<std::uint64_t>(device()) << 32 | device();
}

}  // namespace

class RemoteExperts::Impl {
 public:
  Impl(ExpertModelSpec const& model, RemoteExpertsLimits limits, Exec const& exec, std::shared_ptr<WorkerGroup> group)
      : limits_(limits),
        exec_(exec),
        wire_(model.wire),
        group_(std::move(group)),
        transport_(group_->transport()),
        peers_(group_->peers()),
        lost_reason_(peers_.size()),
        plan_({.max_tokens = limits.max_tokens,
               .experts_per_token = limits.experts_per_token,
               .num_workers = peers_.size()}) {
    for (std::size_t i = 0; i < model.layers.size(); ++i)
      layers_.push_back({.layer = model.layers[i].layer,
                         .hidden = model.layers[i].hidden,
                         .placement = placement(i, model.layers[i].experts.size())});
    allocate(max_hidden(model));
    traffic_.rows_sent.resize(layers_.size());
  }

  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
    std::size_t const layer_index = index_of(layer);
    auto const free = std::ranges::find(slots_, false, &ExchangeSlot::in_use);
    EM_CHECK(free != slots_.end(), "more than " << kNumSlots << " exchanges in flight");
    EM_CHECK(x.rows == routing.num_tokens() && x.cols == layers_[layer_index].hidden,
             "x [" << x.rows << "," << x.cols << "], routing of " << routing.num_tokens() << " tokens");
    ExchangeSlot& slot = *free;
    auto const slot_index = static_cast<std::uint32_t>(free - slots_.begin());
    slot.layer_index = layer_index;
    slot.routing = routing;
    plan_.build(routing, layers_[layer_index].placement);
    for (std::size_t w = 0; w < peers_.size(); ++w)
      slot.legs[w] = {.num_rows = plan_.rows(w).size(), .num_entries = plan_.entries(w).size()};
    notice_deaths();
    for (std::size_t w = 0; w < peers_.size(); ++w)
      if (slot.legs[w].num_rows != 0 && is_lost(w)) throw ExpertsLost(loss(slot, w));
    slot.in_use = true;
    to_wire(exec_, x, wire_, buffers_->at(slot_index).wire_rows.data());
    attempt_ = attempt_ % kMaxTag + 1;  // 1…kMaxTag
    ++num_exchanges_;
    for (std::size_t w = 0; w < peers_.size(); ++w)
      if (slot.legs[w].num_rows != 0) send(slot_index, w);
    return {.slot = slot_index};
  }

  void progress() {
    notice_deaths();
    std::array<Completion, 32> done;
    for (std::size_t count = done.size(); count == done.size();) {
      count = transport_.poll(done);
      for (std::size_t i = 0; i < count; ++i) take(done[i]);
    }
    for (std::uint32_t i = 0; i < kNumSlots; ++i)
      if (slots_[i].waiter && complete({.slot = i})) std::exchange(slots_[i].waiter, nullptr).resume();
  }

  bool complete(Exchange exchange) const {
    return std::ranges::none_of(slots_[exchange.slot].legs,
                                [](Leg const& leg) { return leg.state == Leg::State::waiting; });
  }

  void wait(Exchange exchange, std::coroutine_handle<> waiter) {
    EM_CHECK(!slots_[exchange.slot].waiter, "two waiters for exchange " << exchange.slot);
    slots_[exchange.slot].waiter = waiter;
  }

  void finish(Exchange exchange, MatrixView<float> out) {
    ExchangeSlot& slot = slots_[exchange.slot];
    EM_CHECK(slot.in_use && complete(exchange), "exchange " << exchange.slot << " is not complete");
    slot.in_use = false;
    for (std::size_t w = 0; w < peers_.size(); ++w)
      if (slot.legs[w].state == Leg::State::lost) throw ExpertsLost(loss(slot, w));
    expertmesh::combine(exec_, wire_, {slot.answer_rows.data(), slot.routing.experts.size()}, slot.routing.weights,
                        limits_.experts_per_token, out);
  }

  std::string missing() const {
    std::string text;
    for (std::size_t w = 0; w < peers_.size(); ++w) {
      if (!is_lost(w) && !group_->dead(peers_[w].worker)) continue;
      text += (text.empty() ? "" : "; ") + name(w) + " is dead (" + reason(w) +
              "), experts without a holder: " + orphans(group_->held(peers_[w].worker));
    }
    return text;
  }

  WorkerGroup& group() { return *group_; }
  Traffic const& traffic() const { return traffic_; }

 private:
  struct Layer {
    std::uint32_t layer = 0;
    std::size_t hidden = 0;
    LayerPlacement placement;
  };

  LayerPlacement placement(std::size_t layer_index, std::size_t num_experts) const {
    std::vector<std::vector<ExpertHolder>> holders(num_experts);
    for (std::uint32_t w = 0; w < peers_.size(); ++w) {
      auto const& held = group_->held(peers_[w].worker)[layer_index];
      for (std::uint32_t local = 0; local < held.size(); ++local)
        holders[held[local]].push_back({.worker = w, .local_expert = local});
    }
    return LayerPlacement(holders);
  }

  void allocate(std::size_t hidden) {
    DispatchLayout const layout(hidden, wire_);
    buffers_ = std::make_shared<std::array<SlotBuffers, kNumSlots>>();
    for (std::size_t s = 0; s < kNumSlots; ++s) {
      SlotBuffers& buffers = buffers_->at(s);
      buffers.wire_rows = AlignedBuffer<std::byte>(limits_.max_tokens * layout.row_bytes());
      for (auto const& peer : peers_) {
        auto const limits = dispatch_limits(group_->held(peer.worker), limits_.max_tokens, limits_.experts_per_token);
        buffers.requests.emplace_back(layout.request_bytes(limits.max_rows, limits.max_entries));
        buffers.answers.emplace_back(layout.answer_bytes(limits.max_entries));
        transport_.register_buffer(buffers.requests.back().span());
        transport_.register_buffer(buffers.answers.back().span());
      }
      slots_[s].legs.resize(peers_.size());
      slots_[s].answer_rows.resize(limits_.max_tokens * limits_.experts_per_token);
    }
    group_->keep(buffers_);
  }

  std::size_t index_of(std::uint32_t layer) const {
    auto const found = std::ranges::find(layers_, layer, &Layer::layer);
    EM_CHECK(found != layers_.end(), "layer " << layer << " has no routed experts");
    return static_cast<std::size_t>(found - layers_.begin());
  }

  // Writes worker w's request as the plan says, notes where each (token, slot)'s row will lie in the answer, and starts
  // both messages.
  void send(std::uint32_t slot_index, std::size_t w) {
    ExchangeSlot& slot = slots_[slot_index];
    SlotBuffers& buffers = buffers_->at(slot_index);
    Layer const& layer = layers_[slot.layer_index];
    DispatchLayout const layout(layer.hidden, wire_);
    std::size_t const row_bytes = layout.row_bytes();
    auto const rows = plan_.rows(w);
    auto const entries = plan_.entries(w);

    Leg& leg = slot.legs[w];
    leg.id = {.coordinator_id = coordinator_id_,
              .step = num_exchanges_,
              .coordinator_incarnation = 1,
              .worker_incarnation = peers_[w].incarnation.value(),
              .placement_epoch = group_->epoch().value(),
              .layer = layer.layer,
              .micro_batch = slot_index,
              .attempt = attempt_};
    RequestWriter request = layout.write_request(buffers.requests[w].span(), leg.id, rows.size(), entries.size());
    for (std::size_t r = 0; r < rows.size(); ++r)
      std::memcpy(request.row(r), buffers.wire_rows.data() + rows[r] * row_bytes, row_bytes);
    std::byte const* answer_row = buffers.answers[w].data() + layout.answer_rows_offset();
    for (std::size_t i = 0; i < entries.size(); ++i, answer_row += row_bytes) {
      request.entries[i] = {.row = entries[i].row, .local_expert = entries[i].local_expert};
      slot.answer_rows[entries[i].slot] = answer_row;
    }

    leg.recv = transport_.post_recv(peers_[w].peer, MessageTag(leg.id.attempt),
                                    buffers.answers[w].span().first(layout.answer_bytes(entries.size())));
    leg.send = transport_.post_send(peers_[w].peer, MessageTag(kRequestTag),
                                    std::span<std::byte const>(buffers.requests[w].span()).first(request.bytes));
    leg.state = Leg::State::waiting;
    traffic_.bytes_sent += request.bytes;
    traffic_.rows_sent[slot.layer_index] += rows.size();
  }

  void take(Completion const& completion) {
    for (std::size_t s = 0; s < kNumSlots; ++s)
      for (std::size_t w = 0; w < peers_.size(); ++w) {
        Leg& leg = slots_[s].legs[w];
        if (leg.state != Leg::State::waiting || (completion.op != leg.send && completion.op != leg.recv)) continue;
        if (completion.status != OpStatus::ok) return lose(w, "the transport lost it");
        (completion.op == leg.send ? leg.send_done : leg.recv_done) = true;
        if (completion.op == leg.recv && !accept(s, w, completion.bytes)) return;
        if (leg.send_done && leg.recv_done) leg.state = Leg::State::answered;
        return;
      }
    // Of a leg that is lost already: its worker was cut off.
  }

  // Whether the answer is what was asked for; if not, its worker is broken.
  bool accept(std::size_t slot_index, std::size_t w, std::size_t bytes) {
    ExchangeSlot const& slot = slots_[slot_index];
    DispatchLayout const layout(layers_[slot.layer_index].hidden, wire_);
    Leg const& leg = slot.legs[w];
    auto const parsed =
        parse_answer(std::span<std::byte const>(buffers_->at(slot_index).answers[w].span()).first(bytes), layout,
                     leg.id, leg.num_entries);
    traffic_.bytes_received += bytes;
    if (auto const* error = std::get_if<WireError>(&parsed)) {
      lose(w, "bad answer: " + describe(*error));
      return false;
    }
    return true;
  }

  void notice_deaths() {
    for (std::size_t w = 0; w < peers_.size(); ++w)
      if (!is_lost(w) && group_->dead(peers_[w].worker)) lose(w, group_->death_reason(peers_[w].worker));
  }

  // The worker is gone for good: cut it off, and give up the rows it owes.
  void lose(std::size_t w, std::string const& why) {
    if (is_lost(w)) return;
    lost_reason_[w] = why.empty() ? "no reason known" : why;
    transport_.fence(peers_[w].peer);
    group_->declare_dead(peers_[w].worker, lost_reason_[w]);
    for (auto& slot : slots_)
      if (slot.legs[w].state == Leg::State::waiting) slot.legs[w].state = Leg::State::lost;
  }

  bool is_lost(std::size_t w) const { return !lost_reason_[w].empty(); }
  std::string name(std::size_t w) const { return "worker " + std::to_string(peers_[w].worker.value()); }
  std::string reason(std::size_t w) const {
    return is_lost(w) ? lost_reason_[w] : group_->death_reason(peers_[w].worker);
  }

  // "4 of 8 in layers 0-31, 2 of 4 in layer 32": neighbouring layers of the same counts together.
  std::string orphans(HeldExperts const& held) const {
    std::string text;
    for (std::size_t begin = 0, end = 0; begin < layers_.size(); begin = end) {
      auto const same = [&](std::size_t i) {
        return held[i].size() == held[begin].size() &&
               layers_[i].placement.num_experts() == layers_[begin].placement.num_experts();
      };
      for (end = begin + 1; end < layers_.size() && same(end);) ++end;
      if (held[begin].empty()) continue;
      text += (text.empty() ? "" : ", ") + std::to_string(held[begin].size()) + " of " +
              std::to_string(layers_[begin].placement.num_experts()) + " in layer" + (end - begin > 1 ? "s " : " ") +
              std::to_string(layers_[begin].layer);
      if (end - begin > 1) text.append("-").append(std::to_string(layers_[end - 1].layer));
    }
    return text;
  }

  std::string loss(ExchangeSlot const& slot, std::size_t w) const {
    return name(w) + " is dead (" + reason(w) + "): it owes " + std::to_string(slot.legs[w].num_entries) +
           " expert rows of " + std::to_string(slot.legs[w].num_rows) + " tokens in layer " +
           std::to_string(layers_[slot.layer_index].layer);
  }

  RemoteExpertsLimits const limits_;
  Exec const& exec_;
  DType const wire_;
  std::shared_ptr<WorkerGroup> const group_;
  Transport& transport_;
  std::vector<WorkerPeer> const peers_;   // [N]
  std::vector<Layer> layers_;             // as in ExpertModelSpec
  std::vector<std::string> lost_reason_;  // [N] empty while the worker lives
  DispatchPlan plan_;                     // of the dispatch under way
  std::array<ExchangeSlot, kNumSlots> slots_;
  std::shared_ptr<std::array<SlotBuffers, kNumSlots>> buffers_;
  std::uint64_t const coordinator_id_ = random_id();
  std::uint64_t num_exchanges_ = 0;
  std::uint32_t attempt_ = 0;
  Traffic traffic_;
};

RemoteExperts::RemoteExperts(ExpertModelSpec const& model, RemoteExpertsLimits limits, Exec const& exec,
                             std::shared_ptr<WorkerGroup> group)
    : impl_(std::make_unique<Impl>(model, limits, exec, std::move(group))) {}
RemoteExperts::~RemoteExperts() = default;
Experts::Exchange RemoteExperts::dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
  return impl_->dispatch(layer, x, routing);
}
void RemoteExperts::progress() {
  impl_->progress();
}
void RemoteExperts::wake() {
  impl_->group().wake();
}
void RemoteExperts::idle() {
  impl_->group().idle();
}
std::string RemoteExperts::missing() const {
  return impl_->missing();
}
RemoteExperts::Traffic const& RemoteExperts::traffic() const {
  return impl_->traffic();
}
WorkerGroup& RemoteExperts::group() {
  return impl_->group();
}
bool RemoteExperts::complete(Exchange exchange) {
  return impl_->complete(exchange);
}
void RemoteExperts::wait(Exchange exchange, std::coroutine_handle<> waiter) {
  impl_->wait(exchange, waiter);
}
void RemoteExperts::finish(Exchange exchange, MatrixView<float> out) {
  impl_->finish(exchange, out);
}

std::unique_ptr<RemoteExperts> make_cluster_experts(Cluster& cluster, ExpertModelSpec const& model,
                                                    RemoteExpertsLimits limits, Exec const& exec) {
  std::shared_ptr<WorkerGroup> const borrowed(std::shared_ptr<void>(), &cluster);
  return std::make_unique<RemoteExperts>(model, limits, exec, borrowed);
}

}  // namespace expertmesh
