// Which workers hold which experts. Pure data; a cluster's placements are counted by epoch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace expertmesh {

struct ExpertHolder {
  std::uint32_t worker = 0;        // index 0…W-1
  std::uint32_t local_expert = 0;  // index among the experts of this layer that the worker holds
};

// One MoE layer's experts. Every expert has at least one holder; more are replicas.
class LayerPlacement {
 public:
  explicit LayerPlacement(std::vector<std::vector<ExpertHolder>> const& holders_of_expert);
  [[nodiscard]] std::size_t num_experts() const { return offsets_.size() - 1; }
  [[nodiscard]] std::span<ExpertHolder const> holders(std::size_t expert) const {
    return std::span(holders_).subspan(offsets_[expert], offsets_[expert + 1] - offsets_[expert]);
  }

 private:
  std::vector<ExpertHolder> holders_;
  std::vector<std::size_t> offsets_;  // [E+1]
};

// Equal shares without replicas: worker w of W (w = 0…W-1) holds experts [E*w/W, E*(w+1)/W). W may exceed E.
struct ExpertRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};
ExpertRange contiguous_share(std::size_t num_experts, std::size_t num_workers, std::size_t worker);
LayerPlacement contiguous_placement(std::size_t num_experts, std::size_t num_workers);

}  // namespace expertmesh
