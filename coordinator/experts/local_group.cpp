#include "coordinator/experts/local_group.h"

#include "common/base/check.h"

namespace expertmesh {

LocalGroup::Part::Part(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source,
                       DispatchLimits const& limits, Exec const& engine_exec, ExpertStore::OnBytes const& on_bytes)
    : store(model, held, source, engine_exec.pool(), on_bytes),
      exec(engine_exec.isa(), engine_exec.pool(), ExpertService::exec_limits(model, limits, 1)),
      service(store, exec,
              {.incarnation = kIncarnation, .epoch = kEpoch, .wire = model.wire, .limits = limits, .max_messages = 1}) {
}

LocalGroup::LocalGroup(ExpertModelSpec const& model, std::vector<HeldExperts> held, WeightSource const& source,
                       RemoteExpertsLimits limits, Exec const& exec, ExpertStore::OnBytes const& on_bytes)
    : held_(std::move(held)),
      death_reasons_(held_.size()),
      transport_({.max_peers = held_.size()},
                 [this](PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply) {
                   return serve(peer, request, reply);
                 }) {
  for (std::uint32_t i = 0; i < held_.size(); ++i) {
    peers_.push_back({.worker = WorkerId(i + 1), .incarnation = kIncarnation, .peer = PeerId(i)});
    parts_.push_back(std::make_unique<Part>(model, held_[i], source,
                                            dispatch_limits(held_[i], limits.max_tokens, limits.experts_per_token),
                                            exec, on_bytes));
  }
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
  parts_[peer.value()]->service.serve({&call, 1});
  EM_CHECK(call.error.fault == WireFault::none, describe(call.error));  // both ends are this process
  return call.answer_bytes;
}

std::unique_ptr<RemoteExperts> make_local_experts(ExpertModelSpec const& model, WeightSource const& source,
                                                  RemoteExpertsLimits limits, Exec const& exec,
                                                  std::function<void(std::size_t, std::size_t)> const& on_bytes) {
  auto group = std::make_shared<LocalGroup>(model, std::vector<HeldExperts>(1, all_experts(model)), source, limits,
                                            exec, on_bytes);
  return std::make_unique<RemoteExperts>(model, limits, exec, std::move(group));
}

}  // namespace expertmesh
