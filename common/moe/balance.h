// How evenly a router spreads tokens over experts (Shazeer et al. 2017, section 4).
#pragma once
#include <cstddef>
#include <cstdint>
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
  void begin_step() { ++step_; }
  void add(std::size_t moe_layer, RoutingView routing);
  // What a layer got since the last begin_step().
  struct Hits {
    std::size_t experts = 0;  // distinct ones
    std::size_t rows = 0;     // (token, slot) pairs that went to one
  };
  [[nodiscard]] Hits of_step(std::size_t moe_layer) const {
    return layer_step_[moe_layer] == step_ ? hits_[moe_layer] : Hits{};
  }
  [[nodiscard]] LayerBalance const& layer(std::size_t moe_layer) const { return layers_[moe_layer]; }
  [[nodiscard]] std::size_t num_layers() const { return layers_.size(); }

 private:
  std::vector<LayerBalance> layers_;
  std::vector<Hits> hits_;                 // [MoE layers] in the step that got something last
  std::vector<std::uint64_t> layer_step_;  // [MoE layers] number of that step
  std::vector<std::uint64_t> seen_in_;     // [MoE layers, E] number of the last step with this expert
  std::uint64_t step_ = 1;
};

}  // namespace expertmesh
