#include "coordinator/observe/experts_view.h"

#include <nlohmann/json.hpp>

#include "common/base/check.h"

namespace expertmesh {

ExpertsView experts_view(ExpertModelSpec const& experts, std::vector<Metrics::ExpertBalance> balance,
                         std::vector<WorkerStatus> const& processes) {
  EM_CHECK(balance.size() == experts.layers.size(), balance.size() << " of " << experts.layers.size() << " layers");
  ExpertsView view;
  for (std::size_t m = 0; m < experts.layers.size(); ++m) {
    std::size_t const num_experts = experts.layers[m].experts.size();
    ExpertsView::Layer& layer = view.layers.emplace_back();
    layer.balance = std::move(balance[m]);
    layer.balance.importance.resize(num_experts);
    layer.balance.load.resize(num_experts);
    layer.holders.resize(num_experts);
    for (auto const& process : processes) {
      bool const serves = process.state == WorkerState::serving || process.state == WorkerState::draining;
      if (!serves || !process.held) continue;
      for (std::uint32_t const expert : (*process.held)[m]) layer.holders[expert].push_back(process.id.value());
    }
  }
  return view;
}

std::string to_json(ExpertsView const& view) {
  using Json = nlohmann::ordered_json;
  Json layers = Json::array();
  for (auto const& [balance, holders] : view.layers) {
    std::size_t replicas = 0;
    for (auto const& of_expert : holders) replicas += of_expert.empty() ? 0 : of_expert.size() - 1;
    layers.push_back({{"layer", balance.layer},
                      {"experts", holders.size()},
                      {"replicas", replicas},
                      {"importance_cv2", balance.importance_cv2},
                      {"load_cv2", balance.load_cv2},
                      {"importance", balance.importance},
                      {"load", balance.load},
                      {"holders", holders}});
  }
  return Json{{"layers", std::move(layers)}}.dump();
}

}  // namespace expertmesh
