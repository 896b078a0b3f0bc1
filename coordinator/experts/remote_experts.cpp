#include "coordinator/experts/remote_experts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/kernels/rows.h"
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
        requests_(peers_.size()) {
    for (auto const& layer : model.layers) {
      layers_.push_back({.layer = layer.layer, .hidden = layer.hidden, .homes = {}});
      layers_.back().homes.resize(layer.experts.size());
    }
    for (std::uint32_t w = 0; w < peers_.size(); ++w) {
      HeldExperts const& held = group_->held(peers_[w].worker);
      for (std::size_t i = 0; i < layers_.size(); ++i)
        for (std::uint32_t local = 0; local < held[i].size(); ++local)
          layers_[i].homes[held[i][local]] = {.worker_index = w, .local_expert = local};
    }
    allocate(max_hidden(model));
    traffic_.rows_sent.resize(layers_.size());
  }

  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
    std::size_t const layer_index = index_of(layer);
    auto const free = std::ranges::find(slots_, false, &ExchangeSlot::in_use);
    EM_CHECK(free != slots_.end(), "more than " << kNumSlots << " exchanges in flight");
    EM_CHECK(x.rows == routing.num_tokens() && x.rows <= limits_.max_tokens && x.cols == layers_[layer_index].hidden,
             "x [" << x.rows << "," << x.cols << "], routing of " << routing.num_tokens() << " tokens");
    EM_CHECK(routing.experts_per_token == limits_.experts_per_token, "K " << routing.experts_per_token);
    ExchangeSlot& slot = *free;
    auto const slot_index = static_cast<std::uint32_t>(free - slots_.begin());
    slot.layer_index = layer_index;
    slot.routing = routing;
    notice_deaths();
    count(slot);
    for (std::size_t w = 0; w < peers_.size(); ++w)
      if (slot.legs[w].num_rows != 0 && is_lost(w)) throw ExpertsLost(loss(slot, w));
    slot.in_use = true;
    pack(slot, buffers_->at(slot_index), slot_index, x);
    send(slot, buffers_->at(slot_index));
    return {.slot = slot_index};
  }

  void progress() {
    std::array<Completion, 32> done;
    for (std::size_t count = done.size(); count == done.size();) {
      count = transport_.poll(done);
      for (std::size_t i = 0; i < count; ++i) take(done[i]);
    }
    notice_deaths();
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
  static constexpr std::size_t kNoToken = SIZE_MAX;

  // Who holds an expert, and as which of his.
  struct Home {
    std::uint32_t worker_index = 0;
    std::uint32_t local_expert = 0;
  };
  struct Layer {
    std::uint32_t layer = 0;
    std::size_t hidden = 0;
    std::vector<Home> homes;  // [E]
  };
  // A request while it is being written.
  struct OpenRequest {
    RequestWriter out;
    std::size_t rows = 0;
    std::size_t entries = 0;
    std::size_t last_token = kNoToken;  // the token of the last row
  };

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

  // Calls visit(token, index into routing.experts, home) for all (token, slot) pairs in order.
  template <class Visit>
  void for_each_entry(ExchangeSlot const& slot, Visit visit) const {
    Layer const& layer = layers_[slot.layer_index];
    std::size_t const k = limits_.experts_per_token;
    for (std::size_t i = 0; i < slot.routing.experts.size(); ++i) {
      std::uint32_t const expert = slot.routing.experts[i];
      EM_CHECK(expert < layer.homes.size(), "expert " << expert << " of " << layer.homes.size());
      visit(i / k, i, layer.homes[expert]);
    }
  }

  // How many rows and entries go to each worker; a token counts once per worker.
  void count(ExchangeSlot& slot) {
    for (std::size_t w = 0; w < peers_.size(); ++w) {
      slot.legs[w] = {};
      requests_[w] = {};
    }
    for_each_entry(slot, [&](std::size_t token, std::size_t, Home const& home) {
      Leg& leg = slot.legs[home.worker_index];
      ++leg.num_entries;
      if (std::exchange(requests_[home.worker_index].last_token, token) != token) ++leg.num_rows;
    });
  }

  // Writes the requests, and notes where each (token, slot)'s row will lie in the answers.
  void pack(ExchangeSlot& slot, SlotBuffers& buffers, std::uint32_t slot_index, MatrixView<float const> x) {
    Layer const& layer = layers_[slot.layer_index];
    DispatchLayout const layout(layer.hidden, wire_);
    attempt_ = attempt_ % kMaxTag + 1;  // 1…kMaxTag
    for (std::size_t w = 0; w < peers_.size(); ++w) {
      Leg& leg = slot.legs[w];
      leg.id = {.coordinator_id = coordinator_id_,
                .step = num_exchanges_,
                .coordinator_incarnation = 1,
                .worker_incarnation = peers_[w].incarnation.value(),
                .placement_epoch = group_->epoch().value(),
                .layer = layer.layer,
                .micro_batch = slot_index,
                .attempt = attempt_};
      if (leg.num_rows == 0) continue;
      requests_[w] = {.out = layout.write_request(buffers.requests[w].span(), leg.id, leg.num_rows, leg.num_entries)};
    }
    ++num_exchanges_;
    to_wire(exec_, x, wire_, buffers.wire_rows.data());
    for_each_entry(slot, [&](std::size_t token, std::size_t entry, Home const& home) {
      OpenRequest& request = requests_[home.worker_index];
      if (std::exchange(request.last_token, token) != token)
        std::memcpy(request.out.row(request.rows++), buffers.wire_rows.data() + token * layout.row_bytes(),
                    layout.row_bytes());
      slot.answer_rows[entry] = buffers.answers[home.worker_index].data() + layout.answer_rows_offset() +
                                request.entries * layout.row_bytes();
      request.out.entries[request.entries++] = {.row = static_cast<std::uint32_t>(request.rows - 1),
                                                .local_expert = home.local_expert};
    });
  }

  void send(ExchangeSlot& slot, SlotBuffers& buffers) {
    Layer const& layer = layers_[slot.layer_index];
    DispatchLayout const layout(layer.hidden, wire_);
    for (std::size_t w = 0; w < peers_.size(); ++w) {
      Leg& leg = slot.legs[w];
      if (leg.num_rows == 0) continue;
      leg.recv = transport_.post_recv(peers_[w].peer, MessageTag(leg.id.attempt),
                                      buffers.answers[w].span().first(layout.answer_bytes(leg.num_entries)));
      leg.send =
          transport_.post_send(peers_[w].peer, MessageTag(kRequestTag),
                               std::span<std::byte const>(buffers.requests[w].span()).first(requests_[w].out.bytes));
      leg.state = Leg::State::waiting;
      traffic_.bytes_sent += requests_[w].out.bytes;
      traffic_.rows_sent[slot.layer_index] += leg.num_rows;
    }
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
        return held[i].size() == held[begin].size() && layers_[i].homes.size() == layers_[begin].homes.size();
      };
      for (end = begin + 1; end < layers_.size() && same(end);) ++end;
      if (held[begin].empty()) continue;
      text += (text.empty() ? "" : ", ") + std::to_string(held[begin].size()) + " of " +
              std::to_string(layers_[begin].homes.size()) + " in layer" + (end - begin > 1 ? "s " : " ") +
              std::to_string(layers_[begin].layer);
      if (end - begin > 1) text += "-" + std::to_string(layers_[end - 1].layer);
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
  std::vector<OpenRequest> requests_;     // [N] of the dispatch under way
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
