// "Workers" inside this process: each holds its share of the experts and is served by the same code as a real one, on
// the caller's thread and pool. The coordinator uses one; tests use several.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "common/experts/expert_service.h"
#include "common/transport/in_process_transport.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/experts/remote_experts.h"

namespace expertmesh {

class LocalGroup final : public WorkerGroup {
 public:
  // held: [N]. exec: its ISA and pool are used, with scratch of the experts' own.
  LocalGroup(ExpertModelSpec const& model, std::vector<HeldExperts> held, WeightSource const& source,
             RemoteExpertsLimits limits, Exec const& exec, ExpertStore::OnBytes const& on_bytes);

  [[nodiscard]] Transport& transport() override { return transport_; }
  [[nodiscard]] std::vector<WorkerPeer> const& peers() const override { return peers_; }
  [[nodiscard]] PlacementEpoch epoch() const override { return kEpoch; }
  [[nodiscard]] HeldExperts const& held(WorkerId worker) const override { return held_[worker.value() - 1]; }
  [[nodiscard]] std::size_t resident_bytes() const override;
  void keep(std::shared_ptr<void const> memory) override { kept_.push_back(std::move(memory)); }
  [[nodiscard]] bool dead(WorkerId worker) const override { return !death_reasons_[worker.value() - 1].empty(); }
  [[nodiscard]] std::string death_reason(WorkerId worker) const override { return death_reasons_[worker.value() - 1]; }
  void declare_dead(WorkerId worker, std::string const& reason) override {
    death_reasons_[worker.value() - 1] = reason;
  }
  void idle() override {}
  void wake() override {}

 private:
  static constexpr PlacementEpoch kEpoch{1};
  static constexpr Incarnation kIncarnation{1};

  struct Part {
    Part(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source,
         DispatchLimits const& limits, Exec const& engine_exec, ExpertStore::OnBytes const& on_bytes);
    ExpertStore store;
    Exec exec;
    ExpertService service;
  };

  std::size_t serve(PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply);

  std::vector<HeldExperts> held_;                  // [N]
  std::vector<WorkerPeer> peers_;                  // [N]
  std::vector<std::string> death_reasons_;         // [N] empty while it lives; engine thread only
  std::vector<std::unique_ptr<Part>> parts_;       // [N]
  std::vector<std::shared_ptr<void const>> kept_;  // before the transport, which goes first
  InProcessTransport transport_;
};

}  // namespace expertmesh
