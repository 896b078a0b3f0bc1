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
  begin(routing);
  for (std::uint32_t slot = 0; slot < routing.experts.size(); ++slot) add(slot, routing.experts[slot], placement);
}

void DispatchPlan::build(RoutingView routing, LayerPlacement const& placement, std::span<std::uint32_t const> slots) {
  begin(routing);
  for (std::uint32_t const slot : slots) {
    EM_CHECK(slot < routing.experts.size(), "slot " << slot << " of " << routing.experts.size());
    add(slot, routing.experts[slot], placement);
  }
}

void DispatchPlan::begin(RoutingView routing) {
  EM_CHECK(routing.num_tokens() <= limits_.max_tokens && routing.experts_per_token == limits_.experts_per_token,
           "T " << routing.num_tokens() << " of " << limits_.max_tokens << ", K " << routing.experts_per_token << " of "
                << limits_.experts_per_token);
  for (auto& w : workers_) w.num_rows = w.num_entries = 0;
}

void DispatchPlan::add(std::uint32_t slot, std::uint32_t expert, LayerPlacement const& placement) {
  if (expert == kNoExpert) return;
  EM_CHECK(expert < placement.num_experts(), "expert " << expert << " of " << placement.num_experts());
  auto const token = static_cast<std::uint32_t>(slot / limits_.experts_per_token);
  auto const holders = placement.holders(expert);
  ExpertHolder const holder = holders[token % holders.size()];
  EM_CHECK(holder.worker < workers_.size(), "worker " << holder.worker << " of " << workers_.size());
  PerWorker& worker = workers_[holder.worker];
  if (worker.num_rows == 0 || worker.rows[worker.num_rows - 1] != token) worker.rows[worker.num_rows++] = token;
  worker.entries[worker.num_entries++] = {static_cast<std::uint32_t>(worker.num_rows - 1), holder.local_expert, slot};
}

}  // namespace expertmesh
