#include "common/moe/balance.h"

#include <utility>

#include "common/base/check.h"

namespace expertmesh {

double squared_cv(std::span<double const> values) {
  if (values.empty()) return 0;
  double mean = 0;
  for (double v : values) mean += v;
  mean /= static_cast<double>(values.size());
  if (mean == 0) return 0;
  double variance = 0;
  for (double v : values) variance += (v - mean) * (v - mean);
  return variance / static_cast<double>(values.size()) / (mean * mean);
}

BalanceStatistics::BalanceStatistics(std::size_t num_moe_layers, std::size_t num_experts)
    : layers_(num_moe_layers, LayerBalance{std::vector<double>(num_experts), std::vector<double>(num_experts)}),
      hits_(num_moe_layers),
      layer_step_(num_moe_layers),
      seen_in_(num_moe_layers * num_experts) {}

void BalanceStatistics::add(std::size_t moe_layer, RoutingView routing) {
  EM_CHECK(moe_layer < layers_.size() && routing.weights.size() == routing.experts.size(),
           "MoE layer " << moe_layer << " of " << layers_.size() << ", " << routing.experts.size() << " experts, "
                        << routing.weights.size() << " weights");
  LayerBalance& sums = layers_[moe_layer];
  Hits& hits = hits_[moe_layer];
  if (std::exchange(layer_step_[moe_layer], step_) != step_) hits = {};
  auto const seen_in = std::span(seen_in_).subspan(moe_layer * sums.load.size(), sums.load.size());
  for (std::size_t slot = 0; slot < routing.experts.size(); ++slot) {
    if (routing.experts[slot] == kNoExpert) continue;
    sums.importance[routing.experts[slot]] += routing.weights[slot];
    if (routing.weights[slot] != 0) sums.load[routing.experts[slot]] += 1;
    if (std::exchange(seen_in[routing.experts[slot]], step_) != step_) ++hits.experts;
    ++hits.rows;
  }
}

}  // namespace expertmesh
