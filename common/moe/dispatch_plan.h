// Routing + placement -> what goes to which worker. Integers only; built anew for every exchange without allocating.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/moe/placement.h"
#include "common/moe/routing.h"

namespace expertmesh {

// One (token, slot) that a worker computes.
struct PlanEntry {
  std::uint32_t row = 0;           // index into the worker's rows
  std::uint32_t local_expert = 0;  // at the worker
  std::uint32_t slot = 0;          // t * K + k: where the answer belongs
};

class DispatchPlan {
 public:
  struct Limits {
    std::size_t max_tokens = 0;         // T
    std::size_t experts_per_token = 0;  // K
    std::size_t num_workers = 0;        // W
  };
  explicit DispatchPlan(Limits const& limits);

  // A token whose experts live on one worker travels there once. Of an expert's holders one is taken by the token's
  // index, so that a batch is spread over them. Slots without an expert go nowhere.
  void build(RoutingView routing, LayerPlacement const& placement);
  // Only these of the T*K slots, ascending.
  void build(RoutingView routing, LayerPlacement const& placement, std::span<std::uint32_t const> slots);

  // Tokens whose rows go to this worker, ascending, each once.
  [[nodiscard]] std::span<std::uint32_t const> rows(std::size_t worker) const {
    return {workers_[worker].rows.data(), workers_[worker].num_rows};
  }
  // In order of (token, slot).
  [[nodiscard]] std::span<PlanEntry const> entries(std::size_t worker) const {
    return {workers_[worker].entries.data(), workers_[worker].num_entries};
  }
  [[nodiscard]] std::size_t num_workers() const { return workers_.size(); }

 private:
  struct PerWorker {
    std::vector<std::uint32_t> rows;  // capacity T
    std::vector<PlanEntry> entries;   // capacity T*K
    std::size_t num_rows = 0;
    std::size_t num_entries = 0;
  };
  void begin(RoutingView routing);
  void add(std::uint32_t slot, std::uint32_t expert, LayerPlacement const& placement);

  Limits limits_;
  std::vector<PerWorker> workers_;
};

}  // namespace expertmesh
