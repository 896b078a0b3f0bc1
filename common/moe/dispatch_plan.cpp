#include "common/moe/dispatch_plan.h"

#include "common/base/check.h"

namespace expertmesh {

DispatchPlan::DispatchPlan(Limits const& limits) : limits_(limits), workers_(limits.num_workers) {
  for (auto& w : workers_) {
    w.rows.resize(limits.max_tokens);
    w.entries.resize(limits.max_tokens * limits.experts_per_token);
  }
}

void DispatchPlan::build(RoutingView routing, LayerPlacement const& placement) {
  std::size_t const tokens = routing.num_tokens();
  EM_CHECK(tokens <= limits_.max_tokens && routing.experts_per_token == limits_.experts_per_token,
           "T " << tokens << " of " << limits_.max_tokens << ", K " << routing.experts_per_token << " of "
                << limits_.experts_per_token);
  for (auto& w : workers_) w.num_rows = w.num_entries = 0;
  for (std::uint32_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < limits_.experts_per_token; ++k) {
      auto const slot = static_cast<std::uint32_t>(t * limits_.experts_per_token + k);
      EM_CHECK(routing.experts[slot] < placement.num_experts(),
               "expert " << routing.experts[slot] << " of " << placement.num_experts());
      ExpertHolder const holder = placement.holders(routing.experts[slot]).front();
      EM_CHECK(holder.worker < workers_.size(), "worker " << holder.worker << " of " << workers_.size());
      PerWorker& worker = workers_[holder.worker];
      if (worker.num_rows == 0 || worker.rows[worker.num_rows - 1] != t) worker.rows[worker.num_rows++] = t;
      worker.entries[worker.num_entries++] = {static_cast<std::uint32_t>(worker.num_rows - 1), holder.local_expert,
                                              slot};
    }
  }
}

}  // namespace expertmesh
