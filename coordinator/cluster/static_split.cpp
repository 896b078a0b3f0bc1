#include "coordinator/cluster/static_split.h"

#include <cstdint>
#include <numeric>

#include "common/moe/placement.h"

namespace expertmesh {

std::vector<HeldExperts> static_split(ExpertModelSpec const& model, std::size_t num_workers) {
  std::vector<HeldExperts> held(num_workers);
  for (std::size_t w = 0; w < num_workers; ++w)
    for (auto const& layer : model.layers) {
      ExpertRange const share = contiguous_share(layer.experts.size(), num_workers, w);
      held[w].emplace_back(share.end - share.begin);
      std::iota(held[w].back().begin(), held[w].back().end(), static_cast<std::uint32_t>(share.begin));
    }
  return held;
}

}  // namespace expertmesh
