// "Workers" inside this process: each holds its share of the experts and is served by the same code as a real one, on
// the caller's thread and pool. The coordinator uses one; tests use several, and let them die and come back.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "common/experts/expert_service.h"
#include "common/transport/in_process_transport.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/experts/remote_experts.h"

namespace expertmesh {

// Engine thread only.
class LocalGroup final : public WorkerGroup {
 public:
  // held: [N]. exec: its ISA and pool are used, with scratch of the experts' own. max_lives: of all workers together.
  LocalGroup(ExpertModelSpec const& model, std::vector<HeldExperts> held, WeightSource const& source,
             RemoteExpertsLimits const& limits, Exec const& exec, ExpertStore::OnBytes const& on_bytes,
             std::size_t max_lives = 0);

  // A dead worker serves again, as its next incarnation.
  void revive(WorkerId worker);

  [[nodiscard]] Transport& transport() override { return transport_; }
  [[nodiscard]] std::vector<WorkerPeer> members() override;
  void keep(std::shared_ptr<void const> memory) override { kept_.push_back(std::move(memory)); }
  [[nodiscard]] std::uint64_t version() const override { return version_; }
  [[nodiscard]] bool dead(WorkerPeer const& member) const override { return !death_reason(member).empty(); }
  [[nodiscard]] std::string death_reason(WorkerPeer const& member) const override;
  void declare_dead(WorkerPeer const& member, std::string const& reason) override;
  [[nodiscard]] std::size_t resident_bytes() const override;
  void idle() override {}
  void wake() override {}

 private:
  static constexpr PlacementEpoch kEpoch{1};

  // One worker.
  struct Part {
    Part(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source, Exec const& engine_exec,
         DispatchLimits const& limits, ExpertStore::OnBytes const& on_bytes);
    ExpertStore store;
    Exec exec;
    ServiceBatch batch;
  };
  // One life of it.
  struct Life {
    WorkerPeer peer;
    ExpertService service;
    std::string death_reason;  // empty while it lasts
  };

  void begin_life(WorkerId worker, Incarnation incarnation);
  Life& life(WorkerPeer const& member) const { return *lives_[member.peer.value()]; }
  std::size_t serve(PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply);

  DType const wire_;
  DispatchLimits const message_limits_;
  std::vector<std::shared_ptr<HeldExperts const>> held_;  // [N]
  std::vector<std::unique_ptr<Part>> parts_;              // [N]
  std::vector<std::unique_ptr<Life>> lives_;              // by PeerId
  std::uint64_t version_ = 0;
  std::vector<std::shared_ptr<void const>> kept_;  // before the transport, which goes first
  InProcessTransport transport_;
};

}  // namespace expertmesh
