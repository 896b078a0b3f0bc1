// /v1/experts: whose copy of an expert counts, and the names of the fields.
#include "coordinator/observe/experts_view.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using Holders = std::vector<std::vector<std::uint32_t>>;

WorkerStatus worker(std::uint32_t id, WorkerState state, HeldExperts held) {
  WorkerStatus status;
  status.id = WorkerId(id);
  status.state = state;
  status.held = std::make_shared<HeldExperts const>(std::move(held));
  return status;
}

// Two MoE layers, of three experts and of two.
ExpertModelSpec model() {
  ExpertModelSpec spec;
  spec.layers.resize(2);
  spec.layers[0].layer = 1;
  spec.layers[0].experts.resize(3);
  spec.layers[1].layer = 4;
  spec.layers[1].experts.resize(2);
  return spec;
}

std::vector<Metrics::ExpertBalance> balance() {
  return {{.layer = 1, .importance = {1, 2, 3}, .load = {4, 5, 6}, .importance_cv2 = 0.25, .load_cv2 = 0.5},
          {.layer = 4, .importance = {7, 8, 0}, .load = {9, 10, 0}, .importance_cv2 = 0.75, .load_cv2 = 1}};
}

TEST(ExpertsView, CountsThoseThatServe) {
  auto const view =
      experts_view(model(), balance(),
                   {worker(1, WorkerState::serving, {{0, 1}, {1}}), worker(2, WorkerState::dead, {{2}, {0, 1}}),
                    worker(3, WorkerState::loading, {{0, 1, 2}, {0}}), worker(4, WorkerState::draining, {{1}, {1}}),
                    WorkerStatus{}, worker(6, WorkerState::left, {{0}, {0}})});
  ASSERT_EQ(view.layers.size(), 2);
  EXPECT_EQ(view.layers[0].holders, (Holders{{1}, {1, 4}, {}}));
  EXPECT_EQ(view.layers[1].holders, (Holders{{}, {1, 4}}));
  EXPECT_EQ(view.layers[1].balance.load, (std::vector<double>{9, 10})) << "of its own experts";
}

TEST(ExpertsView, IsJson) {
  auto const view =
      experts_view(model(), balance(),
                   {worker(1, WorkerState::serving, {{0, 1}, {0}}), worker(2, WorkerState::serving, {{0}, {0}})});
  auto const layers = nlohmann::json::parse(to_json(view)).at("layers");
  EXPECT_EQ(layers[0], nlohmann::json::parse(R"({"layer": 1, "experts": 3, "replicas": 1, "importance_cv2": 0.25,
      "load_cv2": 0.5, "importance": [1.0, 2.0, 3.0], "load": [4.0, 5.0, 6.0], "holders": [[1, 2], [1], []]})"));
  EXPECT_EQ(layers[1]["holders"], (Holders{{1, 2}, {}}));
  EXPECT_EQ(nlohmann::json::parse(to_json({})).at("layers").size(), 0);
}

}  // namespace
}  // namespace expertmesh
