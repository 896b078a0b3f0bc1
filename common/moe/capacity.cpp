#include "common/moe/capacity.h"

#include "common/base/check.h"
#include "common/moe/routing.h"

namespace expertmesh {

void hold_capacity(std::size_t capacity, std::span<std::uint32_t> experts, std::span<float> weights,
                   std::span<std::uint32_t> counts) {
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    EM_CHECK(experts[slot] < counts.size(), "expert " << experts[slot] << " of " << counts.size());
    std::uint32_t& count = counts[experts[slot]];
    if (count < capacity) {
      ++count;
      continue;
    }
    experts[slot] = kNoExpert;
    weights[slot] = 0;
  }
}

}  // namespace expertmesh
