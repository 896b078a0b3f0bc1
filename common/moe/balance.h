// How evenly a router spreads tokens over experts (Shazeer et al. 2017, section 4).
#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "common/moe/routing.h"

namespace expertmesh {

// Squared coefficient of variation: population variance over squared mean; 0 where the mean is 0.
double squared_cv(std::span<double const> values);

struct LayerBalance {
  std::vector<double> importance;  // [E] sum over tokens of the gate weight
  std::vector<double> load;        // [E] number of tokens with a gate weight that is not 0
};

// Running sums per MoE layer.
class BalanceStatistics {
 public:
  BalanceStatistics(std::size_t num_moe_layers, std::size_t num_experts);
  void add(std::size_t moe_layer, RoutingView routing);
  [[nodiscard]] LayerBalance const& layer(std::size_t moe_layer) const { return layers_[moe_layer]; }
  [[nodiscard]] std::size_t num_layers() const { return layers_.size(); }

 private:
  std::vector<LayerBalance> layers_;
};

}  // namespace expertmesh
