#include "common/moe/placement.h"

#include "common/base/check.h"

namespace expertmesh {

LayerPlacement::LayerPlacement(std::vector<std::vector<ExpertHolder>> const& holders_of_expert) : offsets_{0} {
  for (auto const& holders : holders_of_expert) {
    EM_CHECK(!holders.empty(), "expert " << offsets_.size() - 1 << " has no holder");
    holders_.insert(holders_.end(), holders.begin(), holders.end());
    offsets_.push_back(holders_.size());
  }
}

ExpertRange contiguous_share(std::size_t num_experts, std::size_t num_workers, std::size_t worker) {
  return {num_experts * worker / num_workers, num_experts * (worker + 1) / num_workers};
}

LayerPlacement contiguous_placement(std::size_t num_experts, std::size_t num_workers) {
  std::vector<std::vector<ExpertHolder>> holders(num_experts);
  for (std::uint32_t w = 0; w < num_workers; ++w) {
    ExpertRange const share = contiguous_share(num_experts, num_workers, w);
    for (std::size_t e = share.begin; e < share.end; ++e)
      holders[e] = {{w, static_cast<std::uint32_t>(e - share.begin)}};
  }
  return LayerPlacement(holders);
}

}  // namespace expertmesh
