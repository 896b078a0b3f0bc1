#include "coordinator/experts/remote_experts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/kernels/rows.h"
#include "common/moe/dispatch_plan.h"
#include "common/protocol/dispatch_layout.h"
#include "coordinator/experts/core_wait.h"
#include "coordinator/experts/exchange_slot.h"
#include "coordinator/experts/exchange_trace.h"
#include "coordinator/experts/static_exchange.h"

namespace expertmesh {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t random_id() {
  std::random_device device;
  return static_cast<std::uint64_t>(device()) << 32 | device();
}

}  // namespace

class RemoteExperts::Impl {
 public:
  Impl(ExpertModelSpec const& model, WeightSource const& source, RemoteExpertsLimits const& limits, Exec const& exec,
       std::shared_ptr<WorkerGroup> group)
      : limits_(limits),
        exec_(exec),
        wire_(model.wire),
        hidden_(max_hidden(model)),
        message_limits_(dispatch_limits(model, limits.max_tokens, limits.experts_per_token)),
        group_(std::move(group)),
        transport_(group_->transport()),
        core_wait_(exec.pool(), transport_, *group_),
        own_(model, source, exec,
             {.max_rows = limits.max_tokens * limits.experts_per_token,
              .cache_bytes = limits.own_cache_bytes,
              .device = limits.expert_device}) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      layers_.push_back({.layer = model.layers[i].layer,
                         .hidden = model.layers[i].hidden,
                         .num_experts = model.layers[i].experts.size(),
                         .placement = {}});
    }
    std::size_t const max_slots = limits_.max_tokens * limits_.experts_per_token;
    std::size_t const row_bytes = DispatchLayout(hidden_, wire_).row_bytes();
    for (auto& slot : slots_) {
      slot.wire_rows = AlignedBuffer<std::byte>(limits_.max_tokens * row_bytes);
      slot.own_rows = AlignedBuffer<std::byte>(max_slots * row_bytes);
      slot.leg_of.resize(max_slots);
      slot.answer_rows.resize(max_slots);
      slot.device_rows.resize(max_slots);
    }
    own_calls_.reserve(max_slots);
    missing_.reserve(max_slots);
    traffic_.rows_sent.resize(layers_.size());
    if (limits_.static_bytes > 0 && exec.device() && limits_.make_link && !limits_.mixed_numerics)
      static_.emplace(
          model,
          StaticExchangeOptions{.max_tokens = limits_.max_tokens,
                                .experts_per_token = limits_.experts_per_token,
                                .most_bytes = limits_.static_bytes,
                                .lose = [this](Member& member, std::string const& why) { lose(member, why); }},
          exec, transport_, traffic_);
    adopt();
  }

  ~Impl() {
    for (auto const& member : members_) group_->keep(member);
    for (auto const& member : former_) group_->keep(member);
  }

  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
    std::size_t const layer_index = index_of(layer);
    auto const free = std::ranges::find(slots_, false, &ExchangeSlot::in_use);
    EM_CHECK(free != slots_.end(), "more than " << kNumSlots << " exchanges in flight");
    EM_CHECK(x.rows == routing.num_tokens() && x.cols == layers_[layer_index].hidden,
             "x [" << x.rows << "," << x.cols << "], routing of " << routing.num_tokens() << " tokens");
    notice_deaths();
    // Not while the other micro-batch has rows under way, unless some are to be asked for again.
    bool const none_under_way = std::ranges::none_of(slots_, &ExchangeSlot::in_use);
    if (!plan_ || any_lost_ || (none_under_way && stale())) adopt();
    if (none_under_way) group_->adopted(seen_version_);
    ExchangeSlot& slot = *free;
    auto const slot_index = static_cast<std::uint32_t>(free - slots_.begin());
    slot.in_use = true;
    slot.layer_index = layer_index;
    slot.x = x;
    slot.routing = routing;
    slot.begin = Clock::now();
    slot.has_wire_rows = slot.any_on_device = false;
    slot.number = ++num_exchanges_;
    // Whoever gets a slot's row says where it lies; a slot without an expert keeps this.
    std::fill_n(slot.answer_rows.begin(), routing.experts.size(), nullptr);
    std::fill_n(slot.device_rows.begin(), routing.experts.size(), nullptr);
    std::fill_n(slot.leg_of.begin(), routing.experts.size(), kNoLeg);
    plan_->build(routing, *layers_[layer_index].placement);
    send_plan(slot_index);
    // Else when this process's threads go to sleep: then workers begin without pushing them aside.
    if (any_link() || !sleeps_ || !core_wait_.suits(members_.size())) transport_.deliver();
    return {.slot = slot_index};
  }

  StepExperts* begin_step(StepShape const& shape) {
    if (!static_) return nullptr;
    EM_CHECK(std::ranges::none_of(slots_, &ExchangeSlot::in_use), "a step begins before exchanges have ended");
    notice_deaths();
    if (stale()) adopt();
    group_->adopted(seen_version_);
    ++num_exchanges_;
    attempt_ = attempt_ % kMaxTag + 1;
    ExchangeId const id{.coordinator_id = coordinator_id_,
                        .step = num_exchanges_,
                        .coordinator_incarnation = 1,
                        .attempt = attempt_,
                        .flags = kFlagRowsApart | (limits_.checksums ? kFlagChecksum : 0)};
    return static_->begin(shape, id, members_, layers_) ? &*static_ : nullptr;
  }

  void move() {
    if (static_ && static_->is_recording()) return;
    notice_deaths();
    std::array<Completion, 32> done;
    for (std::size_t count = done.size(); count == done.size();) {
      count = transport_.poll(done);
      for (std::size_t i = 0; i < count; ++i) take(done[i]);
    }
    for (auto const& member : members_)
      if (member->link && !member->lost()) progress_link(*member);
    std::erase_if(given_up_, [](auto const& link) { return link->aborted(); });
    std::erase_if(former_, [](auto const& member) { return member->at_rest(); });
  }

  void progress() {
    move();
    for (std::uint32_t i = 0; i < kNumSlots; ++i)
      if (std::ranges::find(slots_[i].legs, Leg::State::lost, &Leg::state) != slots_[i].legs.end()) ask_others(i);
    while (ExchangeSlot* const slot = awaited_and_complete(slots_)) std::exchange(slot->waiter, nullptr).resume();
    if (static_) static_->progress();
  }

  void pause(PollPause pause) {
    sleeps_ = pause == PollPause::sleep;
    if (any_link()) {  // they want to be polled
      transport_.deliver();
      return pause_polling(pause);
    }
    if (!sleeps_ || !core_wait_.wait(members_, slots_)) transport_.wait(pause);
  }

  bool complete(Exchange exchange) const { return is_complete(slots_[exchange.slot], slots_); }

  void wait(Exchange exchange, std::coroutine_handle<> waiter) {
    EM_CHECK(!slots_[exchange.slot].waiter, "two waiters for exchange " << exchange.slot);
    slots_[exchange.slot].waiter = waiter;
  }

  void finish(Exchange exchange, MatrixView<float> out) {
    ExchangeSlot& slot = slots_[exchange.slot];
    EM_CHECK(slot.in_use && complete(exchange), "exchange " << exchange.slot << " is not complete");
    std::string const failure = std::exchange(slot.failure, {});
    std::size_t const num_slots = slot.routing.experts.size();
    if (failure.empty() && slot.any_on_device)
      expertmesh::combine(exec_, wire_, {slot.answer_rows.data(), num_slots}, {slot.device_rows.data(), num_slots},
                          slot.routing.weights, limits_.experts_per_token, out);
    else if (failure.empty())
      expertmesh::combine(exec_, wire_, {slot.answer_rows.data(), num_slots}, slot.routing.weights,
                          limits_.experts_per_token, out);
    for (Leg& leg : slot.legs)
      if (leg.state == Leg::State::answered) leg.messages->in_use = false;
    slot.legs.clear();
    slot.in_use = false;
    recoveries_.ended(slot, layers_[slot.layer_index].layer, Clock::now());
    if (!failure.empty()) throw ExpertsLost(failure);
  }

  std::vector<PaceMonitor::Verdict> judge_paces() {
    std::vector<Life> living;
    for (auto const& member : members_)
      if (!member->lost()) living.push_back(member->life());
    return paces_.judge(living);
  }

  WorkerGroup& group() { return *group_; }
  Traffic const& traffic() const { return traffic_; }
  StaticSteps static_steps() const { return static_ ? static_->steps() : StaticSteps{}; }
  Recoveries recoveries() const {
    Recoveries out = recoveries_.sums();
    out.own = own_.loads();
    out.quarantined_bytes = transport_.quarantined_bytes();
    return out;
  }

 private:
  [[nodiscard]] bool any_link() const {
    return std::ranges::any_of(members_, [](auto const& member) { return member->link != nullptr; });
  }

  // ---- who holds what

  bool stale() const { return !plan_ || seen_version_ != group_->version() || any_lost_; }

  // Takes in who joined, leaves out who is gone, and gives this process what is left without a holder.
  void adopt() {
    if (static_) static_->forget_placement();
    seen_version_ = group_->version();  // before members(): what changes in between is seen next time
    auto const serving = group_->members();
    notice_deaths();  // whoever died is no member, and must be known for lost before it is left out
    any_lost_ = false;
    auto const same_life = [](auto const& m) { return m->peer.peer; };
    for (auto const& member : members_) {
      if (member->lost()) lost_peers_.push_back(member->peer.peer);
      bool const stays = !member->lost() && std::ranges::count(serving, member->peer.peer, &WorkerPeer::peer) != 0;
      if (stays) continue;
      if (member->link) member->link->abort("the worker left", nullptr);
      if (!member->at_rest()) former_.push_back(member);
    }
    // One that was lost here may still be a member there for a moment.
    std::erase_if(lost_peers_, [&](PeerId lost) { return std::ranges::count(serving, lost, &WorkerPeer::peer) == 0; });
    std::vector<std::shared_ptr<Member>> members;
    for (WorkerPeer const& peer : serving) {
      if (std::ranges::count(lost_peers_, peer.peer) != 0) continue;
      auto const known = std::ranges::find(members_, peer.peer, same_life);
      members.push_back(known != members_.end() ? *known : new_member(peer));
      members.back()->peer = peer;  // with the experts it holds by now
    }
    members_ = std::move(members);

    auto const self = static_cast<std::uint32_t>(members_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      std::vector<std::vector<ExpertHolder>> holders(layers_[i].num_experts);
      for (std::uint32_t w = 0; w < members_.size(); ++w) {
        auto const& held = (*members_[w]->peer.held)[i];
        for (std::uint32_t local = 0; local < held.size(); ++local)
          holders[held[local]].push_back({.worker = w, .local_expert = local});
      }
      for (std::uint32_t e = 0; e < holders.size(); ++e)
        if (holders[e].empty()) holders[e].push_back({.worker = self, .local_expert = e});
      layers_[i].placement.emplace(holders);
    }
    plan_.emplace(DispatchPlan::Limits{.max_tokens = limits_.max_tokens,
                                       .experts_per_token = limits_.experts_per_token,
                                       .num_workers = members_.size() + 1});
    for (auto& slot : slots_) slot.legs.reserve(2 * members_.size());
  }

  std::shared_ptr<Member> new_member(WorkerPeer const& peer) {
    auto member = std::make_shared<Member>(Member{.peer = peer, .lost_reason = {}, .messages = {}, .open_ops = 0});
    if (!peer.link_id.empty() && limits_.make_link) member->link = limits_.make_link(peer);
    for (std::size_t s = 0; s < kNumSlots; ++s) add_messages(*member);
    return member;
  }

  LegMessages& add_messages(Member& member) {
    DispatchLayout const layout(hidden_, wire_);
    LegMessages& messages = member.messages.emplace_back();
    messages.request =
        AlignedBuffer<std::byte>(std::max(layout.request_bytes(message_limits_.max_rows, message_limits_.max_entries),
                                          step_message_bytes(layers_.size())));
    messages.answer = AlignedBuffer<std::byte>(layout.answer_bytes(message_limits_.max_entries));
    transport_.register_buffer(messages.request.span());
    transport_.register_buffer(messages.answer.span());
    if (member.link) {
      messages.rows_out = AlignedBuffer<std::byte>(message_limits_.max_rows * layout.row_bytes(), exec_.device());
      messages.rows_back = AlignedBuffer<std::byte>(message_limits_.max_entries * layout.row_bytes(), exec_.device());
      member.link->share(messages.rows_out.span());
      member.link->share(messages.rows_back.span());
    }
    return messages;
  }

  std::size_t index_of(std::uint32_t layer) const {
    auto const found = std::ranges::find(layers_, layer, &PlacedLayer::layer);
    EM_CHECK(found != layers_.end(), "layer " << layer << " has no routed experts");
    return static_cast<std::size_t>(found - layers_.begin());
  }

  // ---- out

  // All that the plan says: first to the workers, then what this process runs itself while they compute.
  void send_plan(std::uint32_t slot_index) {
    attempt_ = attempt_ % kMaxTag + 1;  // 1…kMaxTag
    for (std::size_t w = 0; w < members_.size(); ++w)
      if (!plan_->rows(w).empty()) send(slot_index, w);
    if (!plan_->rows(members_.size()).empty()) run_own(slots_[slot_index]);
  }

  // Writes worker w's request as the plan says, notes where each (token, slot)'s row will lie in the answer, and starts
  // both messages.
  void send(std::uint32_t slot_index, std::size_t w) {
    ExchangeSlot& slot = slots_[slot_index];
    PlacedLayer const& layer = layers_[slot.layer_index];
    DispatchLayout const layout(layer.hidden, wire_);
    std::size_t const row_bytes = layout.row_bytes();
    auto const rows = plan_->rows(w);
    auto const entries = plan_->entries(w);

    std::shared_ptr<Member> const& member = members_[w];
    auto const free = std::ranges::find(member->messages, false, &LegMessages::in_use);
    LegMessages& messages = free != member->messages.end() ? *free : add_messages(*member);
    messages.in_use = true;

    auto const leg_index = static_cast<std::uint32_t>(slot.legs.size());
    Leg& leg = slot.legs.emplace_back();
    leg.member = member;
    leg.messages = &messages;
    leg.num_entries = entries.size();
    leg.by_link = member->link_is_ready;
    leg.sent = Clock::now();
    leg.id = {.coordinator_id = coordinator_id_,
              .step = num_exchanges_,
              .coordinator_incarnation = 1,
              .worker_incarnation = member->peer.incarnation.value(),
              .placement_epoch = member->peer.epoch.value(),
              .layer = layer.layer,
              .micro_batch = slot_index,
              .attempt = attempt_,
              .flags = (limits_.checksums ? kFlagChecksum : 0) | (leg.by_link ? kFlagRowsApart : 0)};
    RequestWriter request = layout.write_request(messages.request.span(), leg.id, rows.size(), entries.size());
    if (!leg.by_link) write_rows(slot, rows, request);
    std::byte const* answer_row = messages.answer.data() + layout.answer_rows_offset();
    for (std::size_t i = 0; i < entries.size(); ++i, answer_row += row_bytes) {
      request.entries[i] = {.row = entries[i].row, .local_expert = entries[i].local_expert};
      slot.answer_rows[entries[i].slot] = answer_row;
      slot.device_rows[entries[i].slot] = leg.by_link ? messages.rows_back.data() + i * row_bytes : nullptr;
      slot.leg_of[entries[i].slot] = leg_index;
    }
    if (leg.by_link) {
      slot.any_on_device = true;
      leg.link_bytes_out = rows.size() * row_bytes;
      gather_to_wire(exec_, slot.x, rows, wire_, messages.rows_out.data());
      member->turns.push_back({.slot = slot_index, .leg = leg_index});
      take_turns(*member);
    }

    seal(messages.request.span().first(request.bytes));
    leg.recv =
        transport_.post_recv(member->peer.peer, MessageTag(leg.id.attempt),
                             messages.answer.span().first(layout.answer_bytes(leg.by_link ? 0 : entries.size())));
    leg.send = transport_.post_send(member->peer.peer, MessageTag(kRequestTag),
                                    std::span<std::byte const>(messages.request.span()).first(request.bytes));
    member->open_ops += 2;
    traffic_.bytes_sent += request.bytes;
    if (member->peer.by_shm) traffic_.shm_bytes_sent += request.bytes;
    traffic_.rows_sent[slot.layer_index] += rows.size();
  }

  // Straight from the host's; a device's come here together first.
  void write_rows(ExchangeSlot& slot, std::span<std::uint32_t const> rows, RequestWriter const& request) {
    if (!exec_.device()) return gather_to_wire(exec_, slot.x, rows, wire_, request.rows);
    for (std::size_t r = 0; r < rows.size(); ++r)
      std::memcpy(request.row(r), wire_rows(slot) + rows[r] * request.row_bytes, request.row_bytes);
  }

  // As they leave, where the host can read them.
  std::byte const* wire_rows(ExchangeSlot& slot) {
    if (!std::exchange(slot.has_wire_rows, true)) to_wire(exec_, slot.x, wire_, slot.wire_rows.data());
    return slot.wire_rows.data();
  }

  // The plan's entries without a holder among the workers.
  void run_own(ExchangeSlot& slot) {
    transport_.deliver();  // others are to begin meanwhile
    PlacedLayer const& layer = layers_[slot.layer_index];
    std::size_t const row_bytes = DispatchLayout(layer.hidden, wire_).row_bytes();
    auto const rows = plan_->rows(members_.size());
    own_calls_.clear();
    for (PlanEntry const& entry : plan_->entries(members_.size())) {
      std::byte* const out = slot.own_rows.data() + entry.slot * row_bytes;
      own_calls_.push_back(
          {.expert = entry.local_expert, .in = wire_rows(slot) + rows[entry.row] * row_bytes, .out = out});
      slot.answer_rows[entry.slot] = out;
      slot.device_rows[entry.slot] = nullptr;
      slot.leg_of[entry.slot] = kNoLeg;
    }
    try {
      own_.run(slot.layer_index, own_calls_);
    } catch (std::exception const& error) {
      slot.failure = "no worker holds some experts of layer " + std::to_string(layer.layer) +
                     ", and the coordinator cannot load them: " + error.what();
    }
  }

  // ---- back

  void take(Completion const& completion) {
    auto const of_peer = [&](auto const& member) { return member->peer.peer == completion.peer; };
    auto place = std::ranges::find_if(members_, of_peer);
    if (place == members_.end()) {
      auto const former = std::ranges::find_if(former_, of_peer);
      EM_CHECK(former != former_.end(), "a completion of nobody's, peer " << completion.peer);
      place = former;
    }
    std::shared_ptr<Member> const member_kept = *place;  // a former one goes with its last message
    Member& member = *member_kept;
    --member.open_ops;
    if (member.lost()) return;
    if (completion.status != OpStatus::ok) return lose(member, "the transport lost it");
    if (static_ && static_->take(member, completion)) return;
    for (std::size_t s = 0; s < kNumSlots; ++s)
      for (Leg& leg : slots_[s].legs) {
        if (leg.state != Leg::State::waiting || (completion.op != leg.send && completion.op != leg.recv)) continue;
        (completion.op == leg.send ? leg.send_done : leg.recv_done) = true;
        if (completion.op == leg.recv && !accept(s, leg, completion.bytes)) return;
        if (leg.by_link)
          take_turns(member);
        else if (completion.op == leg.recv)
          note_answer(leg);
        if (leg.done()) leg.state = Leg::State::answered;
        return;
      }
  }

  void note_answer(Leg const& leg) {
    auto const now = core_wait_.answered(leg);
    paces_.add(leg.member->life(), leg.num_entries, std::chrono::duration<double>(now - leg.sent).count());
    if (limits_.trace) trace_answer(*limits_.trace, leg, now);
  }

  // Whether the answer is what was asked for; if not, its worker is broken.
  bool accept(std::size_t slot_index, Leg& leg, std::size_t bytes) {
    DispatchLayout const layout(layers_[slots_[slot_index].layer_index].hidden, wire_);
    auto const parsed = parse_answer(std::span<std::byte const>(leg.messages->answer.span()).first(bytes), layout,
                                     leg.id, leg.num_entries);
    traffic_.bytes_received += bytes;
    if (leg.member->peer.by_shm) traffic_.shm_bytes_received += bytes;
    if (auto const* error = std::get_if<WireError>(&parsed)) {
      lose(*leg.member, "bad answer: " + describe(*error));
      return false;
    }
    auto const& answer = std::get<Answer>(parsed);
    if (leg.by_link) return true;  // they are looked at on the device
    if (all_finite(exec_, wire_, answer.rows, leg.num_entries * layout.hidden()) || is_what_we_get(slot_index, leg))
      return true;
    lose(*leg.member, "bad answer: infinities or NaN that its experts do not give");
    return false;
  }

  // Whether this process gets the same rows as the leg's worker; with mixed numerics, as infinite ones. A model may
  // overflow; a broken worker makes things up.
  bool is_what_we_get(std::size_t slot_index, Leg const& leg) {
    ExchangeSlot& slot = slots_[slot_index];
    PlacedLayer const& layer = layers_[slot.layer_index];
    std::size_t const row_bytes = DispatchLayout(layer.hidden, wire_).row_bytes();
    auto const leg_index = static_cast<std::uint32_t>(&leg - slot.legs.data());
    own_calls_.clear();
    for (std::uint32_t s = 0; s < slot.routing.experts.size(); ++s)
      if (slot.leg_of[s] == leg_index)
        own_calls_.push_back({.expert = slot.routing.experts[s],
                              .in = wire_rows(slot) + s / limits_.experts_per_token * row_bytes,
                              .out = slot.own_rows.data() + s * row_bytes});
    try {
      own_.run(slot.layer_index, own_calls_);
    } catch (std::exception const& error) {
      spdlog::warn("cannot check rows of {}: {}", leg.member->peer.worker.value(), error.what());
      return true;
    }
    auto const is_made_up = [&](std::uint32_t s) {
      std::byte const* const own = slot.own_rows.data() + s * row_bytes;
      if (!limits_.mixed_numerics) return std::memcmp(slot.answer_rows[s], own, row_bytes) != 0;
      return !all_finite(exec_, wire_, slot.answer_rows[s], layer.hidden) &&
             all_finite(exec_, wire_, own, layer.hidden);
    };
    for (std::uint32_t s = 0; s < slot.routing.experts.size(); ++s)
      if (slot.leg_of[s] == leg_index && is_made_up(s)) return false;
    return true;
  }

  // ---- past the messages

  Leg& leg_at(LegPlace place) { return slots_[place.slot].legs[place.leg]; }

  // Sends the rows of whose turn it is, and asks for its answers once its worker has promised them.
  void take_turns(Member& member) {
    while (!member.turns.empty()) {
      Leg& leg = leg_at(member.turns.front());
      if (!std::exchange(leg.rows_sent, true)) {
        member.link->send(leg.messages->rows_out.span().first(leg.link_bytes_out));
        traffic_.link_bytes_sent += leg.link_bytes_out;
      }
      if (!leg.recv_done) return;
      std::size_t const hidden = layers_[slots_[member.turns.front().slot].layer_index].hidden;
      std::size_t const bytes = leg.num_entries * DispatchLayout(hidden, wire_).row_bytes();
      leg.rows_back = member.link->recv(leg.messages->rows_back.span().first(bytes), wire_);
      traffic_.link_bytes_received += bytes;
      member.turns.pop_front();
    }
  }

  void progress_link(Member& member) {
    member.link->poll(Clock::now());
    if (member.link->state() == RowLink::State::failed) return take_failure(member);
    if (member.link->state() == RowLink::State::ready && !std::exchange(member.link_is_ready, true)) {
      spdlog::info("worker {}: rows go by NCCL", member.peer.worker.value());
      group_->set_row_transport(member.peer, "nccl");
    }
    for (std::size_t s = 0; s < kNumSlots; ++s)
      for (Leg& leg : slots_[s].legs) {
        if (leg.member.get() != &member || leg.state != Leg::State::waiting || !leg.rows_back || leg.rows_done)
          continue;
        if (!member.link->done(*leg.rows_back)) continue;
        if (member.link->found_infinities(*leg.rows_back)) {
          fetch(s, leg);
          if (!is_what_we_get(s, leg))
            return lose(member, "bad answer: infinities or NaN that its experts do not give");
        }
        leg.rows_done = true;
        note_answer(leg);
        if (leg.done()) leg.state = Leg::State::answered;
      }
  }

  // A link that never was ready leaves its worker as good as any other's.
  void take_failure(Member& member) {
    std::string const why = member.link->failure();
    if (member.link_is_ready || limits_.links_required) return lose(member, "its rows' link failed: " + why);
    spdlog::warn("worker {}: rows go by the host, there is no link: {}", member.peer.worker.value(), why);
    group_->set_row_transport(member.peer, "host (" + why + ")");
    member.link->abort(why, nullptr);
    given_up_.push_back(std::exchange(member.link, nullptr));
  }

  // The leg's rows to where they would lie without a link.
  void fetch(std::size_t slot_index, Leg& leg) {
    DispatchLayout const layout(layers_[slots_[slot_index].layer_index].hidden, wire_);
    exec_.device()->download(leg.messages->answer.data() + layout.answer_rows_offset(), leg.messages->rows_back.data(),
                             leg.num_entries * layout.row_bytes());
  }

  // ---- deaths

  void notice_deaths() {
    for (auto const* list : {&members_, &former_})
      for (auto const& member : *list)
        if (!member->lost() && group_->dead(member->peer)) lose(*member, group_->death_reason(member->peer));
  }

  // This life is over: cut it off. The rows it owes are asked of others.
  void lose(Member& member, std::string const& why) {
    if (member.lost()) return;
    member.lost_reason = why.empty() ? "no reason known" : why;
    any_lost_ = true;
    transport_.fence(member.peer.peer);
    if (member.link) member.link->abort(member.lost_reason, nullptr);
    if (static_) static_->forget_placement();
    member.link_is_ready = false;
    member.turns.clear();
    group_->declare_dead(member.peer, member.lost_reason);
    for (auto& slot : slots_)
      for (Leg& leg : slot.legs) {
        if (leg.member.get() != &member || leg.state != Leg::State::waiting) continue;
        leg.state = Leg::State::lost;
        if (limits_.trace) trace_loss(*limits_.trace, leg, Clock::now());
        recoveries_.noticed(slot, member.peer.worker.value(), Clock::now());
      }
  }

  // Only the rows that a dead worker owes go out again: to whoever holds their experts now.
  void ask_others(std::uint32_t slot_index) {
    if (stale()) adopt();
    ExchangeSlot& slot = slots_[slot_index];
    missing_.clear();
    for (std::uint32_t s = 0; s < slot.routing.experts.size(); ++s)
      if (slot.leg_of[s] != kNoLeg && slot.legs[slot.leg_of[s]].state == Leg::State::lost) missing_.push_back(s);
    for (Leg& leg : slot.legs)
      if (leg.state == Leg::State::lost) leg.state = Leg::State::replaced;
    plan_->build(slot.routing, *layers_[slot.layer_index].placement, missing_);
    OwnExperts::Loads const before = own_.loads();
    send_plan(slot_index);
    recoveries_.asked_again(slot, missing_.size(), before, own_.loads());
  }

  static constexpr std::uint32_t kNoLeg = ~std::uint32_t{0};

  RemoteExpertsLimits const limits_;
  Exec const& exec_;
  DType const wire_;
  std::size_t const hidden_;  // the largest H
  DispatchLimits const message_limits_;
  std::shared_ptr<WorkerGroup> const group_;
  Transport& transport_;
  CoreWait core_wait_;
  bool sleeps_ = false;  // as the last pause() did
  OwnExperts own_;
  std::vector<std::shared_ptr<Member>> members_;
  std::vector<std::shared_ptr<Member>> former_;  // dead or left, with messages that the transport has not given back
  std::vector<PeerId> lost_peers_;               // of them those that the group still counts among its members
  std::uint64_t seen_version_ = 0;
  std::vector<std::shared_ptr<RowLink>> given_up_;  // links of members that live
  bool any_lost_ = false;                           // since the last adopt()
  std::vector<PlacedLayer> layers_;                 // as in ExpertModelSpec
  std::optional<DispatchPlan> plan_;
  std::array<ExchangeSlot, kNumSlots> slots_;
  std::vector<OwnExperts::Row> own_calls_;
  std::vector<std::uint32_t> missing_;
  std::uint64_t const coordinator_id_ = random_id();
  std::uint64_t num_exchanges_ = 0;
  std::uint32_t attempt_ = 0;
  Traffic traffic_;
  RecoveryBook recoveries_;
  PaceMonitor paces_;
  std::optional<StaticExchange> static_;  // if it may ever be used
};

RemoteExperts::RemoteExperts(ExpertModelSpec const& model, WeightSource const& source,
                             RemoteExpertsLimits const& limits, Exec const& exec, std::shared_ptr<WorkerGroup> group)
    : impl_(std::make_unique<Impl>(model, source, limits, exec, std::move(group))) {}
RemoteExperts::~RemoteExperts() = default;
std::size_t RemoteExperts::link_buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens,
                                             std::size_t experts_per_token) {
  DispatchLimits const limits = dispatch_limits(model, max_tokens, experts_per_token);
  return kNumSlots * (limits.max_rows + limits.max_entries) * max_hidden(model) * size_of(model.wire);
}
Experts::Exchange RemoteExperts::dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
  return impl_->dispatch(layer, x, routing);
}
StepExperts* RemoteExperts::begin_step(StepShape const& shape) {
  return impl_->begin_step(shape);
}
void RemoteExperts::progress() {
  impl_->progress();
}
void RemoteExperts::move() {
  impl_->move();
}
void RemoteExperts::pause(PollPause pause) {
  impl_->pause(pause);
}
void RemoteExperts::wake() {
  impl_->group().wake();
}
void RemoteExperts::idle() {
  impl_->group().idle();
}
RemoteExperts::Traffic const& RemoteExperts::traffic() const {
  return impl_->traffic();
}
RemoteExperts::StaticSteps RemoteExperts::static_steps() const {
  return impl_->static_steps();
}
Recoveries RemoteExperts::recoveries() const {
  return impl_->recoveries();
}
std::vector<PaceMonitor::Verdict> RemoteExperts::judge_paces() {
  return impl_->judge_paces();
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
                                                    WeightSource const& source, RemoteExpertsLimits const& limits,
                                                    Exec const& exec) {
  std::shared_ptr<WorkerGroup> const borrowed(std::shared_ptr<void>(), &cluster);
  return std::make_unique<RemoteExperts>(model, source, limits, exec, borrowed);
}

}  // namespace expertmesh
