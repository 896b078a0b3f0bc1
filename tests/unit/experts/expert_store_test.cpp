#include "common/experts/expert_store.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using test::MadeUpWeights;
using test::tiny_model;

auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

TEST(ExpertStore, LoadsTheHeldExpertsAndNothingElse) {
  ExpertModelSpec const model = tiny_model(5, DType::f32);
  HeldExperts const held{{1, 4}, {0}};
  for (std::size_t threads : {1U, 3U}) {
    MadeUpWeights const source;
    ThreadPool pool(threads);
    std::vector<std::size_t> progress;
    std::size_t total = 0;
    ExpertStore const store(model, held, source, pool, [&](std::size_t loaded, std::size_t of) {
      progress.push_back(loaded);
      total = of;
    });
    EXPECT_EQ(source.loaded(),
              (std::set<std::string>{"layers.1.experts.1.gate", "layers.1.experts.1.up", "layers.1.experts.1.down",
                                     "layers.1.experts.4.gate", "layers.1.experts.4.up", "layers.1.experts.4.down",
                                     "layers.3.experts.0.gate", "layers.3.experts.0.up", "layers.3.experts.0.down"}));
    EXPECT_EQ(store.num_experts(), 3U);
    EXPECT_EQ(store.layers()[0].num_experts, 2U);
    EXPECT_EQ(store.layers()[1].layer, 3U);
    EXPECT_EQ(store.layers()[1].hidden, 20U);
    EXPECT_EQ(store.index(1, 0), 2U);
    EXPECT_EQ(&store.expert(1, 0), &store.expert(2));

    EXPECT_EQ(total, packed_expert_bytes(model, held));
    EXPECT_EQ(store.resident_bytes(), total);
    EXPECT_EQ(progress.size(), 3U);
    EXPECT_TRUE(std::ranges::is_sorted(progress));
    EXPECT_EQ(progress.back(), total);

    // The same expert loaded alone has the same bytes.
    ExpertStore const alone(model, {{4}, {}}, source, pool, kIgnoreBytes);
    PackedMatrix const& a = store.expert(0, 1).gate_up.w;
    PackedMatrix const& b = alone.expert(0, 0).gate_up.w;
    ASSERT_EQ(a.size_bytes(), b.size_bytes());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0);
  }
}

TEST(ExpertStore, HoldingNothingIsFine) {
  MadeUpWeights const source;
  ThreadPool pool(2);
  ExpertStore const store(tiny_model(5, DType::f32), {{}, {}}, source, pool, kIgnoreBytes);
  EXPECT_EQ(store.num_experts(), 0U);
  EXPECT_EQ(store.resident_bytes(), 0U);
  EXPECT_TRUE(source.loaded().empty());
}

TEST(ExpertStore, WhatTheSourceThrowsOnAnyThreadArrives) {
  ExpertModelSpec const model = tiny_model(8, DType::f32);
  for (std::size_t threads : {1U, 4U}) {
    MadeUpWeights source;
    source.broken = "layers.3.experts.7.down";
    ThreadPool pool(threads);
    EXPECT_THROW(ExpertStore(model, all_experts(model), source, pool, kIgnoreBytes), ModelError);
  }
}

TEST(ExpertStore, WhatStoresShareIsReadOnceAndGoesWithTheLastOfThem) {
  ExpertModelSpec const model = tiny_model(5, DType::f32);
  MadeUpWeights source;
  ThreadPool pool(2);
  SharedExperts shared;
  auto before = std::make_unique<ExpertStore>(model, HeldExperts{{0, 2, 4}, {1}}, source, pool, kIgnoreBytes, &shared);
  std::set<std::string> const read = source.loaded();
  std::byte const* const together = before->expert(0, 1).down.w.data();
  auto after = std::make_unique<ExpertStore>(model, HeldExperts{{2, 3}, {}}, source, pool, kIgnoreBytes, &shared);
  std::set<std::string> now = source.loaded();
  for (auto const& name : read) now.erase(name);
  EXPECT_EQ(now,
            (std::set<std::string>{"layers.1.experts.3.gate", "layers.1.experts.3.up", "layers.1.experts.3.down"}));
  EXPECT_EQ(after->resident_bytes(), packed_expert_bytes(model, {{2, 3}, {}}));
  EXPECT_EQ(after->expert(0, 0).down.w.data(), together);
  EXPECT_EQ(after->index_in_model(0, 0), before->index_in_model(0, 1));
  EXPECT_EQ(before->index_in_model(1, 0), 6U);
  EXPECT_EQ(before->num_in_model(), 10U);
  before.reset();
  ExpertStore const alone(model, {{2}, {}}, source, pool, kIgnoreBytes);
  EXPECT_EQ(std::memcmp(after->expert(0, 0).down.w.data(), alone.expert(0, 0).down.w.data(),
                        after->expert(0, 0).down.w.size_bytes()),
            0);
  after.reset();
  EXPECT_FALSE(shared.find_or_claim(0, 2).expert) << "nobody holds it any more";
}

TEST(SharedExperts, WhoFindsOneClaimedDoesNotWaitForIt) {
  ExpertModelSpec const model = tiny_model(5, DType::f32);
  MadeUpWeights source;
  ThreadPool pool(2);
  SharedExperts shared;
  ASSERT_TRUE(shared.find_or_claim(0, 2).claimed);
  EXPECT_FALSE(shared.find_or_claim(0, 2).claimed) << "one claim at a time";
  ExpertStore const store(model, {{1, 2}, {}}, source, pool, kIgnoreBytes, &shared);
  auto const late = std::make_shared<FfnWeights const>(pack_expert(model.layers[0], 2, model.weights, source));
  EXPECT_EQ(shared.enter(0, 2, late).get(), &store.expert(0, 1)) << "the first copy is everybody's";
}

TEST(SharedExperts, WhatCouldNotBeLoadedMayBeTriedAgain) {
  ExpertModelSpec const model = tiny_model(5, DType::f32);
  MadeUpWeights source;
  ThreadPool pool(2);
  SharedExperts shared;
  source.broken = "layers.1.experts.2.down";
  EXPECT_THROW(ExpertStore(model, {{1, 2}, {}}, source, pool, kIgnoreBytes, &shared), ModelError);
  EXPECT_TRUE(shared.find_or_claim(0, 2).claimed);
}

TEST(HeldExperts, AllAreAll) {
  EXPECT_EQ(all_experts(tiny_model(3, DType::f32)), (HeldExperts{{0, 1, 2}, {0, 1, 2}}));
}

TEST(HeldExperts, LimitsFollowTheFullestLayer) {
  ExpertModelSpec model = tiny_model(3, DType::f32);
  model.layers[1].experts.resize(1);
  EXPECT_EQ(dispatch_limits(model, 10, 8), (DispatchLimits{.max_rows = 10, .max_entries = 30}));
  EXPECT_EQ(dispatch_limits(model, 10, 2), (DispatchLimits{.max_rows = 10, .max_entries = 20}));
}

}  // namespace
}  // namespace expertmesh
