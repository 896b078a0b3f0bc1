#include "coordinator/experts/local_group.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

LocalGroup::Part::Part(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source,
                       Exec const& engine_exec, DispatchLimits const& limits, ExpertStore::OnBytes const& on_bytes)
    : store(model, held, source, engine_exec.pool(), on_bytes, nullptr,
            {.device = engine_exec.device(), .threads = &engine_exec.pool().plan()}),
      exec(engine_exec.isa(), engine_exec.pool(), ExpertService::exec_limits(model, limits, 1), engine_exec.device()),
      batch(exec, model.wire, store.num_in_model(), {.max_requests = 1, .max_entries = limits.max_entries}) {}

LocalGroup::LocalGroup(ExpertModelSpec const& model, std::vector<HeldExperts> held, WeightSource const& source,
                       RemoteExpertsLimits const& limits, Exec const& exec, ExpertStore::OnBytes const& on_bytes,
                       std::size_t max_lives)
    : wire_(model.wire),
      message_limits_(dispatch_limits(model, limits.max_tokens, limits.experts_per_token)),
      transport_({.max_peers = std::max(max_lives, held.size())},
                 [this](PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply) {
                   return serve(peer, request, reply);
                 }) {
  for (HeldExperts& part : held) {
    held_.push_back(std::make_shared<HeldExperts const>(std::move(part)));
    parts_.push_back(std::make_unique<Part>(model, *held_.back(), source, exec,
                                            dispatch_limits(model, limits.max_tokens, limits.experts_per_token),
                                            on_bytes));
    begin_life(WorkerId(static_cast<std::uint32_t>(parts_.size())), Incarnation(1));
  }
}

void LocalGroup::begin_life(WorkerId worker, Incarnation incarnation) {
  std::size_t const index = worker.value() - 1;
  PeerId const peer(static_cast<PeerId::rep>(lives_.size()));
  lives_.push_back(std::make_unique<Life>(
      Life{.peer = {.worker = worker, .incarnation = incarnation, .peer = peer, .epoch = kEpoch, .held = held_[index]},
           .service = {parts_[index]->store, parts_[index]->exec,
                       ExpertServiceOptions{
                           .incarnation = incarnation, .epoch = kEpoch, .wire = wire_, .limits = message_limits_}},
           .death_reason = {}}));
  ++version_;
}

void LocalGroup::revive(WorkerId worker) {
  std::uint32_t last = 0;
  for (auto const& life : lives_) {
    if (life->peer.worker != worker) continue;
    EM_CHECK(!life->death_reason.empty(), "worker " << worker << " lives");
    last = life->peer.incarnation.value();
  }
  begin_life(worker, Incarnation(last + 1));
}

std::vector<WorkerPeer> LocalGroup::members() {
  std::vector<WorkerPeer> members;
  for (auto const& life : lives_)
    if (life->death_reason.empty()) members.push_back(life->peer);
  return members;
}

std::string LocalGroup::death_reason(WorkerPeer const& member) const {
  return life(member).death_reason;
}

void LocalGroup::declare_dead(WorkerPeer const& member, std::string const& reason) {
  if (!life(member).death_reason.empty()) return;
  life(member).death_reason = reason;
  ++version_;
}

std::size_t LocalGroup::resident_bytes() const {
  std::size_t bytes = 0;
  for (auto const& part : parts_) bytes += part->store.resident_bytes();
  return bytes;
}

std::size_t LocalGroup::serve(PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply) {
  ServiceCall call;
  call.request = request;
  call.answer = reply;
  Life& life = *lives_[peer.value()];
  life.service.serve({&call, 1}, parts_[life.peer.worker.value() - 1]->batch);
  EM_CHECK(call.error.fault == WireFault::none, describe(call.error));  // both ends are this process
  return call.answer_bytes;
}

std::unique_ptr<RemoteExperts> make_local_experts(ExpertModelSpec const& model, WeightSource const& source,
                                                  RemoteExpertsLimits limits, Exec const& exec,
                                                  std::function<void(std::size_t, std::size_t)> const& on_bytes) {
  limits.expert_device = exec.device();
  auto group = std::make_shared<LocalGroup>(model, std::vector<HeldExperts>(1, all_experts(model)), source, limits,
                                            exec, on_bytes);
  return std::make_unique<RemoteExperts>(model, source, limits, exec, std::move(group));
}

}  // namespace expertmesh
