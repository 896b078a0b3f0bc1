#include "coordinator/cluster/static_split.h"

#include <numeric>

namespace expertmesh {

std::vector<HeldExperts> static_split(ExpertModelSpec const& model, std::size_t num_workers) {
  std::vector<HeldExperts> held(num_workers);
  for (std::size_t w = 0; w < num_workers; ++w)
    for (auto const& layer : model.layers) {
      std::size_t const num_experts = layer.experts.size();
      std::size_t const begin = num_experts * w / num_workers;
      held[w].emplace_back(num_experts * (w + 1) / num_workers - begin);
      std::iota(held[w].back().begin(), held[w].back().end(), static_cast<std::uint32_t>(begin));
    }
  return held;
}

}  // namespace expertmesh
