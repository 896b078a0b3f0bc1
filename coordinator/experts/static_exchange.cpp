#include "coordinator/experts/static_exchange.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"

namespace expertmesh {
namespace {

// Sends and receives of a link that the host is ahead of the device: some layers. More would fill the device's queue,
// and with it full a call would wait for workers.
constexpr std::size_t kMostAhead = 8;

}  // namespace

StaticExchange::StaticExchange(ExpertModelSpec const& model, StaticExchangeOptions options, Exec const& exec,
                               Transport& transport, RemoteExperts::Traffic& traffic)
    : options_(std::move(options)),
      exec_(exec),
      transport_(transport),
      traffic_(traffic),
      wire_(model.wire),
      out_(std::make_shared<AlignedBuffer<std::byte>>(
          buffer_bytes(model, options_.max_tokens, options_.experts_per_token), exec.device())),
      not_finite_(1, exec.device()),
      graphs_(*exec.device()) {
  parts_.reserve(8);
  order_.reserve(model.layers.size());
  step_layers_.reserve(model.layers.size());
}

std::size_t StaticExchange::buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens,
                                         std::size_t experts_per_token) {
  return StepLayout(max_tokens, experts_per_token, max_hidden(model), model.wire).out_bytes;
}

// ---- a step begins

void StaticExchange::place(std::span<std::shared_ptr<Member> const> members, std::span<PlacedLayer const> layers) {
  placed_ = true;
  all_held_ = true;
  layers_.clear();
  for (PlacedLayer const& layer : layers) {
    std::vector<std::uint32_t> holder_of;
    for (std::uint32_t e = 0; e < layer.num_experts; ++e) {
      auto const holders = layer.placement->holders(e);
      holder_of.push_back(
          holders[e % holders.size()].worker);  // all compute, one is taken: of replicas always this one
      all_held_ = all_held_ && holder_of.back() < members.size();
    }
    layers_.push_back(
        {.step = {.layer = layer.layer, .hidden = static_cast<std::uint32_t>(layer.hidden)},
         .holder_of = AlignedBuffer<std::uint32_t>(std::span<std::uint32_t const>(holder_of), exec_.device())});
  }
  std::vector<std::byte const*> rows_back;
  for (auto const& member : members) {
    rows_back.push_back(member->messages.front().rows_back.data());
    if (!std::exchange(member->shared_rows, out_)) member->link->share(out_->span());
  }
  rows_back_ = AlignedBuffer<std::byte const*>(std::span<std::byte const* const>(rows_back), exec_.device());
}

std::size_t StaticExchange::bytes_of_a_layer(std::size_t tokens, std::size_t num_members) const {
  std::size_t most = 0;
  for (Layer const& layer : layers_) {
    StepLayout const layout(tokens, options_.experts_per_token, layer.step.hidden, wire_);
    most = std::max(most, layout.out_bytes + layout.back_bytes);
  }
  return num_members * most;
}

bool StaticExchange::begin(StepShape const& shape, ExchangeId id, std::span<std::shared_ptr<Member> const> members,
                           std::span<PlacedLayer const> layers) {
  EM_CHECK(!under_way_, "a step begins in another");
  EM_CHECK(shape.tokens > 0 && shape.tokens <= options_.max_tokens &&
               shape.experts_per_token == options_.experts_per_token && !shape.layers.empty(),
           "T " << shape.tokens << " of " << options_.max_tokens << ", K " << shape.experts_per_token << " of "
                << options_.experts_per_token << ", " << shape.layers.size() << " layers");
  bool const all_linked =
      !members.empty() && std::ranges::all_of(members, [](auto const& member) { return member->link_is_ready; });
  if (!all_linked) return false;
  if (!placed_) place(members, layers);
  if (!all_held_ || bytes_of_a_layer(shape.tokens, members.size()) > options_.most_bytes) return false;
  if (steps_of_doubt_ > 0) {
    --steps_of_doubt_;
    return false;
  }

  order_.clear();
  step_layers_.clear();
  for (std::uint32_t const number : shape.layers) {
    auto const found = std::ranges::find(layers_, number, [](Layer const& layer) { return layer.step.layer; });
    EM_CHECK(found != layers_.end(), "layer " << number << " has no routed experts");
    order_.push_back(static_cast<std::size_t>(found - layers_.begin()));
    step_layers_.push_back(found->step);
  }
  shape_ = {.tokens = shape.tokens, .experts_per_token = shape.experts_per_token, .comes_again = shape.comes_again};
  if (shape.comes_again) id.flags |= kFlagComesAgain;
  next_ = 0;
  under_way_ = true;
  std::uint32_t const nothing = 0;
  exec_.device()->upload(not_finite_.data(), &nothing, sizeof nothing);
  parts_.clear();
  for (auto const& member : members) invite(member, id);
  count_traffic();
  return true;
}

void StaticExchange::count_traffic() {
  for (std::size_t const layer : order_) {
    StepLayout const layout(shape_.tokens, shape_.experts_per_token, layers_[layer].step.hidden, wire_);
    traffic_.link_bytes_sent += parts_.size() * layout.out_bytes;
    traffic_.link_bytes_received += parts_.size() * layout.back_bytes;
    traffic_.rows_sent[layer] += parts_.size() * shape_.tokens;
  }
}

void StaticExchange::invite(std::shared_ptr<Member> const& member, ExchangeId id) {
  id.worker_incarnation = member->peer.incarnation.value();
  id.placement_epoch = member->peer.epoch.value();
  id.layer = step_layers_.front().layer;
  LegMessages& messages = member->messages.front();
  EM_CHECK(!std::exchange(messages.in_use, true), "rows of worker " << member->peer.worker << " are under way");
  Part& part = parts_.emplace_back();
  part.member = member;
  part.messages = &messages;
  part.id = id;
  std::size_t const bytes =
      write_step(messages.request.span(), id, shape_.tokens, shape_.experts_per_token, step_layers_, wire_);
  seal(messages.request.span().first(bytes));
  part.recv = transport_.post_recv(
      member->peer.peer, MessageTag(id.attempt),
      messages.answer.span().first(DispatchLayout(step_layers_.front().hidden, wire_).answer_bytes(0)));
  part.send = transport_.post_send(member->peer.peer, MessageTag(kRequestTag),
                                   std::span<std::byte const>(messages.request.span()).first(bytes));
  member->open_ops += 2;
  traffic_.bytes_sent += bytes;
}

// ---- its layers

Experts::Exchange StaticExchange::dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
  EM_CHECK(under_way_ && !dispatched_ && next_ < order_.size() && layer == step_layers_[next_].layer,
           "layer " << layer << " is not the next one");
  EM_CHECK(x.rows == shape_.tokens && x.cols == step_layers_[next_].hidden &&
               routing.experts_per_token == shape_.experts_per_token &&
               routing.device_experts.size() == shape_.tokens * shape_.experts_per_token &&
               routing.device_weights.size() == routing.device_experts.size(),
           "x [" << x.rows << "," << x.cols << "], routing of " << routing.num_tokens() << " tokens");
  dispatched_ = true;
  routing_ = routing;
  StepLayout const layout(shape_.tokens, shape_.experts_per_token, x.cols, wire_);
  exec_.device()->to_wire_with(x, wire_, routing.device_experts, out_->data(),
                               reinterpret_cast<std::uint32_t*>(out_->data() + layout.experts_offset));
  for (Part const& part : parts_) {
    if (!part.alive()) continue;
    part.member->link->send(out_->span().first(layout.out_bytes));
    part.member->link->recv(part.messages->rows_back.span().first(layout.back_bytes));
  }
  return {};
}

// Not that the rows are here, but that the device may be told to wait for them.
bool StaticExchange::complete(Exchange /*exchange*/) {
  return std::ranges::all_of(parts_, [](Part const& part) {
    return !part.alive() || (part.member->link->enqueued() && part.member->link->under_way() <= kMostAhead);
  });
}

void StaticExchange::wait(Exchange /*exchange*/, std::coroutine_handle<> waiter) {
  EM_CHECK(!waiter_, "two waiters");
  waiter_ = waiter;
}

void StaticExchange::progress() {
  if (waiter_ && complete({})) std::exchange(waiter_, nullptr).resume();
}

void StaticExchange::finish(Exchange /*exchange*/, MatrixView<float> out) {
  EM_CHECK(dispatched_ && complete({}), "layer " << next_ << " is not on its way");
  for (Part const& part : parts_)
    if (part.alive()) part.member->link->hold_device();
  exec_.device()->combine_held(wire_,
                               {.of_holder = rows_back_.span(),
                                .holder_of = layers_[order_[next_]].holder_of.span(),
                                .not_finite = not_finite_.data()},
                               routing_.device_experts, routing_.device_weights, shape_.experts_per_token, out);
  dispatched_ = false;
  ++next_;
}

bool StaticExchange::run(GraphCache::Key key, std::function<void()> const& ops) {
  auto const each_link = [this](auto const& use) {
    for (Part const& part : parts_)
      if (part.alive()) use(*part.member->link);
  };
  DeviceGraph* const graph = shape_.comes_again ? graphs_.find_or_record(key, ops) : nullptr;
  next_ = 0;
  if (!graph) {
    ops();
    return false;
  }
  each_link([](RowLink& link) { link.hold_device(); });
  graph->launch();
  each_link([](RowLink& link) { link.launched(); });
  next_ = order_.size();
  return true;
}

// ---- and it ends

bool StaticExchange::take(Member& member, Completion const& completion) {
  auto const part = std::ranges::find_if(parts_, [&](Part const& p) {
    return under_way_ && p.member.get() == &member && (completion.op == p.send || completion.op == p.recv);
  });
  if (part == parts_.end()) return false;
  (completion.op == part->send ? part->send_done : part->recv_done) = true;
  if (completion.op == part->send) return true;
  traffic_.bytes_received += completion.bytes;
  auto const parsed = parse_answer(std::span<std::byte const>(part->messages->answer.span()).first(completion.bytes),
                                   DispatchLayout(step_layers_.front().hidden, wire_), part->id,
                                   shape_.tokens * shape_.experts_per_token);
  if (auto const* error = std::get_if<WireError>(&parsed)) options_.lose(member, "bad answer: " + describe(*error));
  return true;
}

StepExperts::Outcome StaticExchange::outcome() {
  EM_CHECK(under_way_ && next_ == order_.size(), next_ << " of " << order_.size() << " layers are combined");
  for (Part const& part : parts_) {
    // Until its link is aborted the device may wait for it.
    bool const over = part.alive() ? part.send_done && part.recv_done && part.member->link->under_way() == 0
                                   : part.member->link->aborted();
    if (!over) return Outcome::under_way;
  }
  under_way_ = false;
  std::string died;
  for (Part const& part : parts_) {
    if (part.alive())
      part.messages->in_use = false;
    else
      died += (died.empty() ? "worker " : ", ") + std::to_string(part.member->peer.worker.value());
  }
  parts_.clear();
  std::uint32_t not_finite = 0;
  if (died.empty()) exec_.device()->download(&not_finite, not_finite_.data(), sizeof not_finite);
  if (died.empty() && not_finite == 0) {
    ++steps_.good;
    return Outcome::good;
  }
  ++steps_.lost;
  if (died.empty()) {
    steps_of_doubt_ = kStepsOfDoubt;
    spdlog::warn("infinities or NaN among the experts' rows: the step is run again, where it is seen whose they are");
  } else {
    spdlog::warn("{} died in a step of {} rows, which is run again", died, shape_.tokens);
  }
  return Outcome::lost;
}

}  // namespace expertmesh
