#include "coordinator/cluster/static_split.h"

#include <cstdint>
#include <numeric>

#include "common/moe/placement.h"

namespace expertmesh {

std::vector<std::size_t> num_experts_of(ExpertModelSpec const& model) {
  std::vector<std::size_t> out;
  for (auto const& layer : model.layers) out.push_back(layer.experts.size());
  return out;
}

std::vector<HeldExperts> static_split(std::vector<std::size_t> const& num_experts, std::size_t num_workers) {
  std::vector<HeldExperts> held(num_workers);
  for (std::size_t w = 0; w < num_workers; ++w)
    for (std::size_t const experts : num_experts) {
      ExpertRange const share = contiguous_share(experts, num_workers, w);
      held[w].emplace_back(share.end - share.begin);
      std::iota(held[w].back().begin(), held[w].back().end(), static_cast<std::uint32_t>(share.begin));
    }
  return held;
}

}  // namespace expertmesh
