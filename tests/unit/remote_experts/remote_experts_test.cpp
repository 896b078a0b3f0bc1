#include "coordinator/experts/remote_experts.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>

#include "common/base/task.h"
#include "common/kernels/grouped_ffn.h"
#include "common/kernels/rows.h"
#include "coordinator/cluster/static_split.h"
#include "coordinator/experts/local_group.h"
#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using test::MadeUpWeights;
using test::Routing;
using test::tiny_model;

constexpr std::size_t kExperts = 7;
constexpr std::size_t kMaxTokens = 33;
constexpr std::size_t kMaxLives = 400;
auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

RoutingView view(Routing const& r) {
  return {.experts = r.experts, .weights = r.weights, .experts_per_token = r.experts_per_token};
}

Task exchange(FrameArena&, Experts& experts, std::uint32_t layer, MatrixView<float const> x, RoutingView routing,
              MatrixView<float> out) {
  auto const pending = experts.dispatch(layer, x, routing);
  co_await experts.combine(pending, out);
}

// Runs one exchange to its end; throws what it throws.
std::vector<float> run(Experts& experts, std::uint32_t layer, std::vector<float> const& x, std::size_t hidden,
                       Routing const& routing) {
  std::vector<float> out(x.size(), -1.0F);
  std::size_t const tokens = x.size() / hidden;
  FrameArena arena(std::size_t{64} << 10);
  Task task = exchange(arena, experts, layer, {x.data(), tokens, hidden}, view(routing), {out.data(), tokens, hidden});
  task.start();
  while (!task.done()) experts.progress();
  task.rethrow();
  return out;
}

struct World {
  explicit World(DType dtype) : model(tiny_model(kExperts, dtype)) {}

  RemoteExpertsLimits limits(std::size_t k) const {
    return {.experts_per_token = k, .max_tokens = kMaxTokens, .own_cache_bytes = own_cache_bytes};
  }
  std::shared_ptr<LocalGroup> group(std::vector<HeldExperts> held, std::size_t k) {
    return std::make_shared<LocalGroup>(model, std::move(held), source, limits(k), exec, kIgnoreBytes, kMaxLives);
  }
  std::shared_ptr<LocalGroup> group(std::size_t num_workers, std::size_t k) {
    return group(static_split(num_experts_of(model), num_workers), k);
  }
  std::unique_ptr<RemoteExperts> experts(std::shared_ptr<LocalGroup> workers, std::size_t k) {
    return std::make_unique<RemoteExperts>(model, source, limits(k), exec, std::move(workers));
  }

  ExpertModelSpec model;
  MadeUpWeights source;
  std::size_t own_cache_bytes = std::size_t{1} << 20;
  ThreadPool pool{2};
  Exec exec{Isa::scalar, pool, {.max_rows = kMaxTokens, .max_columns = 24}};
  std::size_t hidden = model.layers[0].hidden;
};

class RemoteExpertsTest : public ::testing::TestWithParam<DType> {};

TEST_P(RemoteExpertsTest, SameBitsForAnyNumberOfWorkers) {
  std::mt19937 random(5);
  World world(GetParam());
  for (std::size_t const k : {std::size_t{1}, std::size_t{3}, kExperts}) {
    std::vector<std::unique_ptr<RemoteExperts>> groups;
    for (std::size_t const n : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{5}, kExperts})
      groups.push_back(world.experts(world.group(n, k), k));
    for (std::size_t const tokens : {0U, 1U, 2U, 7U, 33U}) {
      Routing const routing = test::random_routing(random, tokens, kExperts, k);
      auto const x = test::random_floats(random, tokens * world.hidden);
      for (std::uint32_t const layer : {1U, 3U}) {
        auto const expected = run(*groups[0], layer, x, world.hidden, routing);
        for (std::size_t g = 1; g < groups.size(); ++g) {
          auto const seen = run(*groups[g], layer, x, world.hidden, routing);
          ASSERT_TRUE(test::same_bits(seen, expected)) << "group " << g << ", " << tokens << " tokens, K " << k;
        }
        // A token's result does not depend on its batch.
        for (std::size_t t = 0; t < tokens; ++t) {
          Routing one{.experts_per_token = k,
                      .experts = {routing.experts.begin() + static_cast<long>(t * k),
                                  routing.experts.begin() + static_cast<long>((t + 1) * k)},
                      .weights = {routing.weights.begin() + static_cast<long>(t * k),
                                  routing.weights.begin() + static_cast<long>((t + 1) * k)}};
          std::vector<float> const row(x.begin() + static_cast<long>(t * world.hidden),
                                       x.begin() + static_cast<long>((t + 1) * world.hidden));
          auto const alone = run(*groups[2], layer, row, world.hidden, one);
          ASSERT_TRUE(test::same_bits(alone, std::span(expected).subspan(t * world.hidden, world.hidden)));
        }
      }
    }
  }
}

// A token to one expert with gate weight 1: the row comes back as the expert made it, and not another's.
TEST_P(RemoteExpertsTest, RowsFindTheirExpertAndTheirWayBack) {
  std::mt19937 random(6);
  World world(GetParam());
  auto const experts = world.experts(world.group(3, 1), 1);
  auto const x = test::random_floats(random, world.hidden);
  std::set<std::vector<float>> results;
  for (std::uint32_t e = 0; e < kExperts; ++e) {
    auto const out = run(*experts, 1, x, world.hidden, {.experts_per_token = 1, .experts = {e}, .weights = {1.0F}});
    std::vector<float> expected(world.hidden);
    ExpertStore const store(world.model, {{e}, {}}, world.source, world.pool, kIgnoreBytes);
    FfnWeights const* weights = &store.expert(0, 0);
    std::array<std::size_t, 2> const offsets{0, 1};
    AlignedBuffer<std::byte> in(world.hidden * size_of(GetParam()));
    AlignedBuffer<std::byte> row(world.hidden * size_of(GetParam()));
    to_wire(world.exec, {x.data(), 1, world.hidden}, GetParam(), in.data());
    std::byte const* in_row = in.data();
    std::byte* out_row = row.data();
    grouped_ffn(
        world.exec,
        {.groups = {&weights, 1}, .offsets = offsets, .in = {&in_row, 1}, .out = {&out_row, 1}, .wire = GetParam()});
    std::byte const* combined = row.data();
    float const one = 1.0F;
    combine(world.exec, GetParam(), {&combined, 1}, {&one, 1}, 1, {expected.data(), 1, world.hidden});
    EXPECT_EQ(out, expected);
    results.insert(out);
  }
  EXPECT_EQ(results.size(), kExperts);
}

TEST_P(RemoteExpertsTest, ChecksumsChangeNothing) {
  std::mt19937 random(9);
  World world(GetParam());
  Routing const routing = test::random_routing(random, 7, kExperts, 3);
  auto const x = test::random_floats(random, 7 * world.hidden);
  auto const plain = world.experts(world.group(2, 3), 3);
  RemoteExpertsLimits limits = world.limits(3);
  limits.checksums = true;
  RemoteExperts sealed(world.model, world.source, limits, world.exec, world.group(2, 3));
  EXPECT_TRUE(test::same_bits(run(sealed, 3, x, world.hidden, routing), run(*plain, 3, x, world.hidden, routing)));
  EXPECT_EQ(sealed.recoveries().exchanges, 0U);
}

TEST_P(RemoteExpertsTest, TwoMicroBatchesInFlight) {
  std::mt19937 random(8);
  World world(GetParam());
  auto const experts = world.experts(world.group(3, 2), 2);
  std::vector<Routing> const routings{test::random_routing(random, 9, kExperts, 2),
                                      test::random_routing(random, 5, kExperts, 2)};
  std::vector<std::vector<float>> x;
  std::vector<std::vector<float>> expected;
  for (std::size_t i = 0; i < 2; ++i) {
    x.push_back(test::random_floats(random, routings[i].weights.size() / 2 * world.hidden));
    expected.push_back(run(*experts, 3, x[i], world.hidden, routings[i]));
  }
  std::vector<std::vector<float>> out{std::vector<float>(x[0].size()), std::vector<float>(x[1].size())};
  FrameArena arena_a(std::size_t{64} << 10);
  FrameArena arena_b(std::size_t{64} << 10);
  Task a = exchange(arena_a, *experts, 3, {x[0].data(), 9, world.hidden}, view(routings[0]),
                    {out[0].data(), 9, world.hidden});
  Task b = exchange(arena_b, *experts, 3, {x[1].data(), 5, world.hidden}, view(routings[1]),
                    {out[1].data(), 5, world.hidden});
  a.start();
  b.start();
  EXPECT_FALSE(a.done());
  while (!a.done() || !b.done()) experts->progress();
  EXPECT_EQ(out, expected);
}

// One that is complete at once all the same: nobody but this process holds its expert.
TEST_P(RemoteExpertsTest, MicroBatchesTakeTurnsInTheOrderInWhichTheyBegan) {
  World world(GetParam());
  auto held = static_split(num_experts_of(world.model), 2);
  ASSERT_EQ(std::erase(held[1].back(), std::uint32_t{kExperts - 1}), 1U);
  auto const experts = world.experts(world.group(std::move(held), 1), 1);
  std::vector<float> const x(world.hidden, 0.25F);
  Routing const elsewhere{.experts_per_token = 1, .experts = {0}, .weights = {1}};
  Routing const here{.experts_per_token = 1, .experts = {kExperts - 1}, .weights = {1}};
  std::vector<float> out_a(world.hidden);
  std::vector<float> out_b(world.hidden);
  FrameArena arena_a(std::size_t{64} << 10);
  FrameArena arena_b(std::size_t{64} << 10);
  MatrixView<float const> const in(x.data(), 1, world.hidden);
  Task a = exchange(arena_a, *experts, 3, in, view(elsewhere), {out_a.data(), 1, world.hidden});
  Task b = exchange(arena_b, *experts, 3, in, view(here), {out_b.data(), 1, world.hidden});
  a.start();
  b.start();
  EXPECT_FALSE(a.done());
  EXPECT_FALSE(b.done()) << "before the first";
  while (!b.done()) {
    experts->progress();
    EXPECT_LE(b.done(), a.done());
  }
  EXPECT_EQ(out_a, run(*experts, 3, x, world.hidden, elsewhere));
  EXPECT_EQ(out_b, run(*experts, 3, x, world.hidden, here));

  Task alone = exchange(arena_b, *experts, 3, in, view(here), {out_b.data(), 1, world.hidden});
  alone.start();
  EXPECT_TRUE(alone.done());
}

TEST_P(RemoteExpertsTest, ATokenTravelsOnceToEachWorker) {
  World world(GetParam());
  auto const experts = world.experts(world.group(2, 3), 3);  // experts 0-2 and 3-6
  std::vector<float> const x(2 * world.hidden, 0.5F);
  run(*experts, 3, x, world.hidden,
      {.experts_per_token = 3, .experts = {0, 1, 2, 6, 0, 5}, .weights = std::vector(6, 0.3F)});
  EXPECT_EQ(experts->traffic().rows_sent, (std::vector<std::size_t>{0, 3}));
  DispatchLayout const layout(world.hidden, GetParam());
  EXPECT_EQ(experts->traffic().bytes_sent, layout.request_bytes(2, 4) + layout.request_bytes(1, 2));
  EXPECT_EQ(experts->traffic().bytes_received, layout.answer_bytes(4) + layout.answer_bytes(2));
}

// A worker of the group as the exchange knows it.
WorkerPeer peer_of(LocalGroup& group, std::uint32_t worker) {
  for (WorkerPeer const& peer : group.members())
    if (peer.worker == WorkerId(worker)) return peer;
  ADD_FAILURE() << "worker " << worker << " does not serve";
  return {};
}

// Starts one exchange, lets workers die before the transport has had a turn, and ends it.
std::vector<float> run_with_deaths(World& world, LocalGroup& group, Experts& experts, std::vector<float> const& x,
                                   Routing const& routing, std::vector<std::uint32_t> const& victims) {
  std::vector<float> out(x.size());
  std::size_t const tokens = x.size() / world.hidden;
  FrameArena arena(std::size_t{64} << 10);
  Task task =
      exchange(arena, experts, 3, {x.data(), tokens, world.hidden}, view(routing), {out.data(), tokens, world.hidden});
  task.start();
  for (std::uint32_t const victim : victims) group.declare_dead(peer_of(group, victim), "killed");
  while (!task.done()) experts.progress();
  task.rethrow();
  return out;
}

TEST_P(RemoteExpertsTest, ADeathMidExchangeChangesNothing) {
  std::mt19937 random(9);
  World world(GetParam());
  auto const group = world.group(3, 2);  // experts 0-1, 2-3, 4-6
  auto const experts = world.experts(group, 2);
  auto const expected_of = world.experts(world.group(1, 2), 2);
  for (std::uint32_t round = 0; round < 60; ++round) {
    Routing const routing = test::random_routing(random, 1 + round % kMaxTokens, kExperts, 2);
    auto const x = test::random_floats(random, routing.weights.size() / 2 * world.hidden);
    auto const expected = run(*expected_of, 3, x, world.hidden, routing);
    std::vector<std::uint32_t> victims{1 + round % 3};
    if (round % 4 == 0) victims.push_back(1 + (round + 1) % 3);
    if (round % 8 == 0) victims.push_back(1 + (round + 2) % 3);
    ASSERT_EQ(run_with_deaths(world, *group, *experts, x, routing, victims), expected) << "round " << round;
    ASSERT_EQ(run(*experts, 3, x, world.hidden, routing), expected) << "while they are gone";
    for (std::uint32_t const victim : victims) group->revive(WorkerId(victim));
    auto const own_rows = experts->recoveries().own.rows;
    ASSERT_EQ(run(*experts, 3, x, world.hidden, routing), expected) << "when they are back";
    ASSERT_EQ(experts->recoveries().own.rows, own_rows) << "the workers have their experts again";
  }
  auto const recoveries = experts->recoveries();
  EXPECT_GT(recoveries.exchanges, 50U);
  EXPECT_GT(recoveries.rows, recoveries.exchanges);
  EXPECT_LE(recoveries.own.experts, kExperts) << "all of the layer are kept";
  EXPECT_EQ(recoveries.quarantined_bytes, 0U);
}

TEST_P(RemoteExpertsTest, OnlyTheRowsOfTheDeadGoOutAgain) {
  World world(GetParam());
  auto const group = world.group(3, 1);
  auto const experts = world.experts(group, 1);
  std::vector<float> const x(4 * world.hidden, 0.25F);
  Routing const routing{.experts_per_token = 1, .experts = {0, 2, 3, 4}, .weights = {1, 1, 1, 1}};
  run_with_deaths(world, *group, *experts, x, routing, {2});
  EXPECT_EQ(experts->recoveries().rows, 2U);
  EXPECT_EQ(experts->recoveries().own.rows, 2U);
  EXPECT_EQ(experts->recoveries().own.experts, 2U);
  EXPECT_EQ(experts->traffic().rows_sent, (std::vector<std::size_t>{0, 4}));
}

TEST_P(RemoteExpertsTest, AReplicaTakesTheRowsOfTheDead) {
  std::mt19937 random(10);
  World world(GetParam());
  // Workers 1 and 2 hold the same; worker 3 holds the rest.
  std::vector<std::uint32_t> const low{0, 1, 2, 3};
  std::vector<std::uint32_t> const high{4, 5, 6};
  auto const group = world.group({{low, low}, {low, low}, {high, high}}, 2);
  auto const experts = world.experts(group, 2);
  auto const expected_of = world.experts(world.group(1, 2), 2);
  Routing const routing = test::random_routing(random, 20, kExperts, 2);
  auto const x = test::random_floats(random, 20 * world.hidden);
  auto const expected = run(*expected_of, 3, x, world.hidden, routing);
  EXPECT_EQ(run_with_deaths(world, *group, *experts, x, routing, {1}), expected);
  EXPECT_GT(experts->recoveries().rows, 0U);
  EXPECT_EQ(experts->recoveries().own.rows, 0U);
  EXPECT_EQ(run_with_deaths(world, *group, *experts, x, routing, {2}), expected);
  EXPECT_GT(experts->recoveries().own.rows, 0U);
}

TEST_P(RemoteExpertsTest, WithoutRoomTheExpertsAreStreamed) {
  std::mt19937 random(11);
  World world(GetParam());
  for (std::size_t const experts_kept : {0U, 1U, 3U}) {
    world.own_cache_bytes = experts_kept * packed_expert_bytes(world.model.layers[0], world.model.weights);
    auto const group = world.group(2, kExperts);
    auto const experts = world.experts(group, kExperts);
    Routing const routing = test::random_routing(random, 5, kExperts, kExperts);
    auto const x = test::random_floats(random, 5 * world.hidden);
    auto const expected = run(*experts, 3, x, world.hidden, routing);
    ASSERT_EQ(run_with_deaths(world, *group, *experts, x, routing, {1, 2}), expected) << experts_kept << " kept";
    ASSERT_EQ(run(*experts, 3, x, world.hidden, routing), expected);
    ASSERT_GE(experts->recoveries().own.experts, 2 * kExperts - std::max<std::size_t>(experts_kept, 1));
  }
}

TEST_P(RemoteExpertsTest, WhatCannotBeLoadedFailsItsExchangeAlone) {
  World world(GetParam());
  auto const group = world.group(3, 1);
  auto const experts = world.experts(group, 1);
  std::vector<float> const x(2 * world.hidden, 0.25F);
  Routing const bad{.experts_per_token = 1, .experts = {2, 4}, .weights = {1, 1}};
  Routing const good{.experts_per_token = 1, .experts = {3, 4}, .weights = {1, 1}};
  auto const expected = run(*experts, 3, x, world.hidden, good);
  world.source.broken = world.model.layers[1].experts[2].up.name;
  try {
    run_with_deaths(world, *group, *experts, x, bad, {2});
    FAIL() << "expert 2 cannot be loaded";
  } catch (ExpertsLost const& error) {
    EXPECT_NE(std::string(error.what()).find("layer 3"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(world.source.broken), std::string::npos) << error.what();
  }
  for (int round = 0; round < 3; ++round) {
    EXPECT_THROW(run(*experts, 3, x, world.hidden, bad), ExpertsLost);
    EXPECT_EQ(run(*experts, 3, x, world.hidden, good), expected);
  }
  world.source.broken.clear();
  run(*experts, 3, x, world.hidden, bad);
}

// A model may overflow: then this process does, too. A worker that overflows alone makes things up.
TEST_P(RemoteExpertsTest, InfinitiesAreTheModelsOrTheEndOfTheirWorker) {
  for (bool const mixed : {false, true})
    for (bool const model_overflows : {true, false}) {
      World world(GetParam());
      std::vector<float> const x(2 * world.hidden, 0.25F);
      Routing const routing{.experts_per_token = 1, .experts = {2, 4}, .weights = {1, 1}};
      RemoteExpertsLimits limits = world.limits(1);
      limits.mixed_numerics = mixed;
      auto const expected = run(*world.experts(world.group(1, 1), 1), 3, x, world.hidden, routing);
      world.source.largest = 1e30F;
      auto const group = world.group(2, 1);
      if (!model_overflows) world.source.largest = 0.5F;
      RemoteExperts experts(world.model, world.source, limits, world.exec, group);
      auto const out = run(experts, 3, x, world.hidden, routing);
      EXPECT_EQ(group->members().size(), model_overflows ? 2U : 0U) << "mixed: " << mixed;
      EXPECT_NE(std::ranges::all_of(out, [](float v) { return std::isfinite(v); }), model_overflows);
      if (!model_overflows) {
        EXPECT_EQ(out, expected);
      }
    }
}

TEST_P(RemoteExpertsTest, ADeathWithTwoMicroBatchesInFlight) {
  std::mt19937 random(12);
  World world(GetParam());
  auto const group = world.group(3, 2);
  auto const experts = world.experts(group, 2);
  std::vector<Routing> const routings{test::random_routing(random, 9, kExperts, 2),
                                      test::random_routing(random, 5, kExperts, 2)};
  std::vector<std::vector<float>> x;
  std::vector<std::vector<float>> expected;
  for (Routing const& routing : routings) {
    x.push_back(test::random_floats(random, routing.weights.size() / 2 * world.hidden));
    expected.push_back(run(*experts, 3, x.back(), world.hidden, routing));
  }
  std::vector<std::vector<float>> out{std::vector<float>(x[0].size()), std::vector<float>(x[1].size())};
  FrameArena arena_a(std::size_t{64} << 10);
  FrameArena arena_b(std::size_t{64} << 10);
  Task a = exchange(arena_a, *experts, 3, {x[0].data(), 9, world.hidden}, view(routings[0]),
                    {out[0].data(), 9, world.hidden});
  a.start();
  group->declare_dead(peer_of(*group, 1), "killed");  // noticed by the second dispatch
  Task b = exchange(arena_b, *experts, 3, {x[1].data(), 5, world.hidden}, view(routings[1]),
                    {out[1].data(), 5, world.hidden});
  b.start();
  group->declare_dead(peer_of(*group, 3), "killed");
  while (!a.done() || !b.done()) experts->progress();
  EXPECT_EQ(out, expected);
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, RemoteExpertsTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
