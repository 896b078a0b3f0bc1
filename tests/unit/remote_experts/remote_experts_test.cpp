#include "coordinator/experts/remote_experts.h"

#include <gtest/gtest.h>

#include <array>
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

  std::shared_ptr<LocalGroup> group(std::size_t num_workers, std::size_t k) {
    return std::make_shared<LocalGroup>(model, static_split(model, num_workers), source,
                                        RemoteExpertsLimits{.experts_per_token = k, .max_tokens = kMaxTokens}, exec,
                                        kIgnoreBytes);
  }
  std::unique_ptr<RemoteExperts> experts(std::shared_ptr<LocalGroup> workers, std::size_t k) {
    RemoteExpertsLimits const limits{.experts_per_token = k, .max_tokens = kMaxTokens};
    return std::make_unique<RemoteExperts>(model, limits, exec, std::move(workers));
  }

  ExpertModelSpec model;
  MadeUpWeights source;
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

TEST_P(RemoteExpertsTest, ADeathMidExchangeLosesTheRowsItOwes) {
  std::mt19937 random(9);
  World world(GetParam());
  auto const group = world.group(3, 1);  // experts 0-1, 2-3, 4-6
  auto const experts = world.experts(group, 1);
  EXPECT_EQ(experts->missing(), "");
  std::vector<float> const x(3 * world.hidden, 0.25F);
  Routing const to_all{.experts_per_token = 1, .experts = {0, 2, 4}, .weights = {1, 1, 1}};
  Routing const to_others{.experts_per_token = 1, .experts = {0, 5, 6}, .weights = {1, 1, 1}};
  auto const expected = run(*experts, 1, x, world.hidden, to_others);

  std::vector<float> out(x.size());
  FrameArena arena(std::size_t{64} << 10);
  Task task = exchange(arena, *experts, 1, {x.data(), 3, world.hidden}, view(to_all), {out.data(), 3, world.hidden});
  task.start();
  group->declare_dead(WorkerId(2), "killed");  // before the transport has had a turn: its rows never come
  while (!task.done()) experts->progress();
  try {
    task.rethrow();
    FAIL() << "nothing was lost";
  } catch (ExpertsLost const& error) {
    EXPECT_NE(std::string(error.what()).find("worker 2 is dead"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("1 expert rows of 1 tokens in layer 1"), std::string::npos)
        << error.what();
  }
  EXPECT_NE(experts->missing().find("worker 2 is dead"), std::string::npos) << experts->missing();
  EXPECT_NE(experts->missing().find("2 of 7 in layers 1-3"), std::string::npos) << experts->missing();

  // What needs it fails at once, the rest goes on, in every slot.
  for (int round = 0; round < 3; ++round) {
    EXPECT_THROW(run(*experts, 3, x, world.hidden, to_all), ExpertsLost);
    EXPECT_EQ(run(*experts, 1, x, world.hidden, to_others), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, RemoteExpertsTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
