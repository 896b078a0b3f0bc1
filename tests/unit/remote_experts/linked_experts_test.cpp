// Rows by links, exchange by exchange. The bits are those of the same workers by way of the host.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/remote_experts/linked_rig.h"

namespace expertmesh {
namespace {

using test::kExperts;
using test::Kind;
using test::Point;
using test::Routing;

class LinkedExpertsTest : public test::LinkedRig {};

TEST_P(LinkedExpertsTest, TheBitsAreThoseByWayOfTheHost) {
  for (std::size_t const k : {std::size_t{1}, std::size_t{3}}) {
    auto const by_host = group(plans(2, false), k);
    auto const expected_of = experts(by_host, k);
    for (std::size_t const n : {1U, 2U, 3U}) {
      auto const workers = group(plans(n, true), k);
      auto const linked = experts(workers, k);
      connect(*linked, *workers, n);
      for (std::size_t const tokens : {1U, 2U, 7U, 33U}) {
        Routing const routing = test::random_routing(random, tokens, kExperts, k);
        auto const x = test::random_floats(random, tokens * hidden);
        auto const expected = run(*expected_of, x, routing);
        auto const before = linked->traffic().link_bytes_sent;
        ASSERT_TRUE(test::same_bits(run(*linked, x, routing), expected)) << n << " workers, " << tokens << " tokens";
        EXPECT_GE(linked->traffic().link_bytes_sent - before, tokens * hidden * size_of(GetParam()));
      }
      EXPECT_EQ(linked->recoveries().exchanges, 0U);
    }
    EXPECT_EQ(expected_of->traffic().link_bytes_sent, 0U);
  }
}

// One that a checkpoint leaves in other bits.
TEST(ExpertsOfADevice, AreAllInOneFormat) {
  auto const device = open_device_on_host();
  ThreadPool pool(1);
  test::MadeUpWeights const source;
  ExpertModelSpec model = test::tiny_model(kExperts, DType::bf16);
  auto const load = [&](DeviceMemory* there) {
    ExpertStore const store(model, all_experts(model), source, pool, [](auto, auto) {}, nullptr, {.device = there});
  };
  load(device.get());
  for (WeightStorage const storage : {WeightStorage::mxfp4, WeightStorage::fp8_blocks}) {
    WeightSlice& other = model.layers[1].experts[3].down;
    WeightSlice const before = other;
    other.storage = storage;
    other.block_rows = other.block_columns = 128;
    try {
      load(device.get());
      ADD_FAILURE() << "a layer of two formats";
    } catch (ModelError const& error) {
      std::string const text = error.what();
      EXPECT_NE(text.find("layer 3"), std::string::npos) << text;
      EXPECT_NE(text.find("expert 3"), std::string::npos) << text;
    }
    other = before;
  }
}

TEST_P(LinkedExpertsTest, AnExpertTwiceAndSlotsWithoutOne) {
  auto const by_host = group(plans(2, false), 3);
  auto const expected_of = experts(by_host, 3);
  auto const workers = group(plans(2, true), 3);
  auto const linked = experts(workers, 3);
  connect(*linked, *workers, 2);
  Routing const routing{.experts_per_token = 3,
                        .experts = {0, 0, 6, kNoExpert, 2, 2, kNoExpert, kNoExpert, kNoExpert, 5, 4, 6},
                        .weights = std::vector(12, 0.3F)};
  auto const x = test::random_floats(random, 4 * hidden);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), run(*expected_of, x, routing)));
}

// Some by links, some by the host, one of them a processor.
TEST_P(LinkedExpertsTest, AMixedGroup) {
  auto mixed = plans(3, true);
  mixed[1].kind = Kind::cpu;
  mixed[1].by_link = false;
  auto by_host = mixed;
  for (test::WorkerPlan& plan : by_host) plan.by_link = false;
  auto const expected_group = group(by_host, 2);
  auto const expected_of = experts(expected_group, 2);
  auto const workers = group(mixed, 2);
  auto const linked = experts(workers, 2);
  connect(*linked, *workers, 2);
  for (std::size_t const tokens : {1U, 9U, 20U}) {
    Routing const routing = test::random_routing(random, tokens, kExperts, 2);
    auto const x = test::random_floats(random, tokens * hidden);
    ASSERT_TRUE(test::same_bits(run(*linked, x, routing), run(*expected_of, x, routing))) << tokens;
  }
  EXPECT_GT(linked->traffic().link_bytes_sent, 0U);
}

// The second's rows wait for the first's answers to be asked for: nothing here waits for anything there in a circle.
TEST_P(LinkedExpertsTest, TwoMicroBatchesInFlight) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(plans(2, true), 2);
  auto const linked = experts(workers, 2);
  connect(*linked, *workers, 2);
  for (int round = 0; round < 10; ++round) {
    auto const x_a = test::random_floats(random, 33 * hidden);
    auto const x_b = test::random_floats(random, 5 * hidden);
    Batch a = batch(x_a, test::random_routing(random, 33, kExperts, 2));
    Batch b = batch(x_b, test::random_routing(random, 5, kExperts, 2));
    FrameArena arena_a(std::size_t{64} << 10);
    FrameArena arena_b(std::size_t{64} << 10);
    Task const task_a = start(arena_a, *linked, a);
    Task const task_b = start(arena_b, *linked, b);
    while (!task_a.done() || !task_b.done()) linked->progress();
    ASSERT_TRUE(test::same_bits(result(a), run(*expected_of, x_a, a.routing)));
    ASSERT_TRUE(test::same_bits(result(b), run(*expected_of, x_b, b.routing)));
  }
}

TEST_P(LinkedExpertsTest, UntilItsLinkIsReadyAWorkersRowsGoByTheHost) {
  auto const by_host = group(plans(1, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(plans(1, true), 2);
  auto const linked = experts(workers, 2);
  Routing const routing = test::random_routing(random, 5, kExperts, 2);
  auto const x = test::random_floats(random, 5 * hidden);
  auto const expected = run(*expected_of, x, routing);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), expected));
  EXPECT_EQ(linked->traffic().link_bytes_sent, 0U);
  connect(*linked, *workers, 1);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), expected));
  EXPECT_GT(linked->traffic().link_bytes_sent, 0U);
}

TEST_P(LinkedExpertsTest, AWorkerMayDieAnywhere) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  for (Point const point :
       {Point::before_rows, Point::behind_rows, Point::before_answer, Point::behind_answer, Point::before_header})
    for (std::size_t const victims : {1U, 2U}) {
      auto const workers = group(plans(2, true), 2);
      auto const linked = experts(workers, 2);
      connect(*linked, *workers, 2);
      for (std::size_t v = 0; v < victims; ++v) workers->worker(v).mortal.die_at(point);
      auto const x_a = test::random_floats(random, 20 * hidden);
      auto const x_b = test::random_floats(random, 9 * hidden);
      Batch a = batch(x_a, test::random_routing(random, 20, kExperts, 2));
      Batch b = batch(x_b, test::random_routing(random, 9, kExperts, 2));
      FrameArena arena_a(std::size_t{64} << 10);
      FrameArena arena_b(std::size_t{64} << 10);
      Task const task_a = start(arena_a, *linked, a);
      Task const task_b = start(arena_b, *linked, b);
      while (!task_a.done() || !task_b.done()) linked->progress();
      ASSERT_NO_THROW(task_a.rethrow());
      // Who runs its rows now has a device, too.
      auto const what = "point " + std::to_string(static_cast<int>(point)) + ", " + std::to_string(victims) + " die";
      ASSERT_TRUE(test::same_bits(result(a), run(*expected_of, x_a, a.routing))) << what;
      ASSERT_TRUE(test::same_bits(result(b), run(*expected_of, x_b, b.routing))) << what;
      EXPECT_EQ(workers->members().size(), 2 - victims) << what;
      EXPECT_GT(linked->recoveries().rows, 0U) << what;
      ASSERT_TRUE(test::same_bits(run(*linked, x_a, a.routing), run(*expected_of, x_a, a.routing))) << what;
    }
}

// A model may overflow; a worker that does so alone makes things up. Its rows are looked at where they are.
TEST_P(LinkedExpertsTest, InfinitiesAreTheModelsOrTheEndOfTheirWorker) {
  for (bool const model_overflows : {true, false}) {
    source.largest = 0.5F;
    std::vector<float> const x(2 * hidden, 0.25F);
    Routing const routing{.experts_per_token = 1, .experts = {2, 4}, .weights = {1, 1}};
    auto const by_host = group(plans(1, false), 1);
    auto const expected = run(*experts(by_host, 1), x, routing);
    source.largest = 1e30F;
    auto const workers = group(plans(2, true), 1);
    auto const linked = experts(workers, 1);
    connect(*linked, *workers, 2);  // they have loaded
    if (!model_overflows) source.largest = 0.5F;
    auto const out = run(*linked, x, routing);
    EXPECT_EQ(workers->members().size(), model_overflows ? 2U : 0U);
    EXPECT_NE(std::ranges::all_of(out, [](float v) { return std::isfinite(v); }), model_overflows);
    if (!model_overflows) {
      EXPECT_TRUE(test::same_bits(out, expected));
      EXPECT_NE(workers->last_reason().find("infinities"), std::string::npos) << workers->last_reason();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, LinkedExpertsTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
