// Steps in the static form, through links between emulated devices. The bits are those of the exact form by way of the
// host; what goes wrong in a step leaves no trace once it has been run again.
#include "coordinator/experts/static_exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/unit/remote_experts/linked_rig.h"

namespace expertmesh {
namespace {

using test::kExperts;
using test::kMaxTokens;
using test::Point;
using test::Routing;
using Outcome = StepExperts::Outcome;

constexpr std::size_t kEnough = 1U << 20;  // bytes a layer: any step

class StaticExchangeTest : public test::LinkedRig {
 protected:
  // More layers than the host may be ahead.
  StaticExchangeTest() {
    ExpertLayerSpec const first = model.layers.front();
    for (std::uint32_t const layer : {4U, 6U, 7U, 8U, 9U, 12U, 13U, 20U}) {
      ExpertLayerSpec& next = model.layers.emplace_back(first);
      next.layer = layer;
      for (std::size_t e = 0; e < kExperts; ++e) {
        std::string const name = "layers." + std::to_string(layer) + ".experts." + std::to_string(e) + ".";
        next.experts[e] = {.gate = WeightSlice{name + "gate"}, .up = {name + "up"}, .down = {name + "down"}};
      }
    }
    for (ExpertLayerSpec const& layer : model.layers) layers.push_back(layer.layer);
  }

  // What goes in, layer by layer.
  struct In {
    std::vector<float> x;
    Routing routing;
  };
  std::vector<In> random_step(std::size_t tokens, std::size_t k) {
    std::vector<In> step;
    for (std::size_t l = 0; l < layers.size(); ++l)
      step.push_back({test::random_floats(random, tokens * hidden), test::random_routing(random, tokens, kExperts, k)});
    return step;
  }
  using Out = std::vector<std::vector<float>>;
  Out exact(RemoteExperts& by, std::vector<In> const& step) {
    Out out;
    for (std::size_t l = 0; l < layers.size(); ++l) out.push_back(run(by, step[l].x, step[l].routing, layers[l]));
    return out;
  }
  struct Ended {
    Outcome outcome{};
    bool one_launch = false;
    Out out{};
  };
  // None: it is not taken. So the step runner does it, too.
  std::optional<Ended> run_static(RemoteExperts& by, std::vector<In> const& step) {
    auto batches = batches_of(step);
    return run_static(by, batches, false);
  }
  std::vector<Batch> batches_of(std::vector<In> const& step) {
    std::vector<Batch> batches;
    for (In const& in : step) batches.push_back(batch(in.x, in.routing));
    return batches;
  }
  std::optional<Ended> run_static(RemoteExperts& by, std::vector<Batch>& batches, bool comes_again = true) {
    StepExperts* const form = by.begin_step({.tokens = batches.front().tokens,
                                             .experts_per_token = batches.front().routing.experts_per_token,
                                             .layers = layers,
                                             .comes_again = comes_again});
    if (!form) return std::nullopt;
    std::uint64_t const key[] = {reinterpret_cast<std::uintptr_t>(batches.front().x.data())};
    Ended ended;
    ended.one_launch = form->run(key, [&] {
      for (std::size_t l = 0; l < layers.size(); ++l) {
        FrameArena arena(std::size_t{64} << 10);
        Task const task = start(arena, *form, batches[l], layers[l]);
        while (!task.done()) look(by);
        task.rethrow();
      }
    });
    ended.outcome = form->outcome();
    while (ended.outcome == Outcome::under_way) {
      look(by);
      ended.outcome = form->outcome();
    }
    for (Batch const& b : batches) ended.out.push_back(result(b));
    return ended;
  }
  // Another step of the same shape, at the same addresses.
  void put(std::vector<Batch>& batches, std::vector<In> const& step) {
    for (std::size_t l = 0; l < step.size(); ++l) {
      Batch& b = batches[l];
      b.routing = step[l].routing;
      device->upload(b.x.data(), step[l].x.data(), b.x.size_bytes());
      device->upload(b.device_experts.data(), b.routing.experts.data(), b.device_experts.size_bytes());
      device->upload(b.device_weights.data(), b.routing.weights.data(), b.device_weights.size_bytes());
    }
  }
  static void expect_same(Out const& out, Out const& expected, std::string const& what) {
    for (std::size_t l = 0; l < expected.size(); ++l)
      ASSERT_TRUE(test::same_bits(out[l], expected[l])) << what << ", layer " << l;
  }
  // Every worker has all experts.
  std::vector<test::WorkerPlan> replicas(std::size_t count) {
    std::vector<test::WorkerPlan> out(count);
    for (test::WorkerPlan& plan : out) plan.held = all_experts(model);
    return out;
  }

  std::vector<std::uint32_t> layers;
};

TEST_P(StaticExchangeTest, TheBitsAreThoseOfTheExactForm) {
  for (std::size_t const k : {std::size_t{1}, std::size_t{3}}) {
    auto const by_host = group(plans(2, false), k);
    auto const expected_of = experts(by_host, k);
    std::map<std::size_t, std::pair<std::vector<In>, Out>> steps;  // by tokens
    for (std::size_t const tokens : {1U, 2U, 7U, 33U}) {
      auto const step = random_step(tokens, k);
      steps[tokens] = {step, exact(*expected_of, step)};
    }
    for (std::size_t const n : {1U, 2U, 3U}) {
      auto const workers = group(plans(n, true), k);
      auto const linked = experts(workers, k, kEnough);
      connect(*linked, *workers, n);
      for (auto const& [tokens, known] : steps) {
        auto const& [step, expected] = known;
        auto const what = std::to_string(n) + " workers, " + std::to_string(tokens) + " tokens";
        auto const before = linked->traffic();
        auto const ended = run_static(*linked, step);
        ASSERT_TRUE(ended && ended->outcome == Outcome::good) << what;
        expect_same(ended->out, expected, what);
        auto const& after = linked->traffic();
        EXPECT_EQ(after.bytes_sent - before.bytes_sent, n * step_message_bytes(layers.size())) << what;
        EXPECT_EQ(after.rows_sent[9] - before.rows_sent[9], n * tokens) << what;
        StepLayout const layout(tokens, k, hidden, GetParam());
        EXPECT_EQ(after.link_bytes_sent - before.link_bytes_sent, n * layers.size() * layout.out_bytes) << what;
        EXPECT_EQ(after.link_bytes_received - before.link_bytes_received, n * layers.size() * layout.back_bytes);
      }
      EXPECT_EQ(linked->static_steps().good, 4U);
      EXPECT_EQ(linked->static_steps().lost, 0U);
    }
  }
}

TEST_P(StaticExchangeTest, StepsOfBothFormsFollowEachOther) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(plans(2, true), 2);
  auto const linked = experts(workers, 2, kEnough);
  connect(*linked, *workers, 2);
  for (std::size_t round = 0; round < 6; ++round) {
    auto const step = random_step(1 + 5 * round, 2);
    auto const expected = exact(*expected_of, step);
    if (round % 3 != 0) expect_same(exact(*linked, step), expected, "exact " + std::to_string(round));
    auto const ended = run_static(*linked, step);
    ASSERT_TRUE(ended && ended->outcome == Outcome::good) << round;
    expect_same(ended->out, expected, "static " + std::to_string(round));
  }
}

TEST_P(StaticExchangeTest, AStepThatComesAgainIsOneLaunch) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  for (std::size_t const n : {1U, 3U}) {
    auto const workers = group(plans(n, true), 2);
    auto const linked = experts(workers, 2, kEnough);
    connect(*linked, *workers, n);
    std::vector<std::vector<Batch>> shapes;
    for (std::size_t const tokens : {1U, 7U}) shapes.push_back(batches_of(random_step(tokens, 2)));
    for (std::size_t round = 0; round < 3; ++round)
      for (auto& batches : shapes) {
        auto const what = std::to_string(n) + " workers, round " + std::to_string(round);
        auto const step = random_step(batches.front().tokens, 2);
        auto const expected = exact(*expected_of, step);
        put(batches, step);
        auto const before = linked->traffic();
        auto const ended = run_static(*linked, batches);
        ASSERT_TRUE(ended && ended->outcome == Outcome::good) << what;
        EXPECT_EQ(ended->one_launch, round > 0) << what;
        expect_same(ended->out, expected, what);
        StepLayout const layout(batches.front().tokens, 2, hidden, GetParam());
        EXPECT_EQ(linked->traffic().link_bytes_sent - before.link_bytes_sent, n * layers.size() * layout.out_bytes);
        // Rows of the other form go by the same links and memory.
        if (round == 1) expect_same(exact(*linked, step), expected, what);
      }
  }
}

TEST_P(StaticExchangeTest, AnExpertTwiceAndSlotsWithoutOne) {
  auto const by_host = group(plans(2, false), 3);
  auto const expected_of = experts(by_host, 3);
  auto const workers = group(plans(2, true), 3);
  auto const linked = experts(workers, 3, kEnough);
  connect(*linked, *workers, 2);
  auto step = random_step(4, 3);
  for (In& in : step) in.routing.experts = {0, 0, 6, kNoExpert, 2, 2, kNoExpert, kNoExpert, kNoExpert, 5, 4, 6};
  auto const ended = run_static(*linked, step);
  ASSERT_TRUE(ended && ended->outcome == Outcome::good);
  expect_same(ended->out, exact(*expected_of, step), "");
}

// Worker 3 has nothing of the layers; the experts of the others are nowhere twice, or everywhere.
TEST_P(StaticExchangeTest, WhoeverHoldsWhat) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto idle = plans(2, true);
  idle.push_back({.held = HeldExperts(layers.size())});
  for (auto const& held : {replicas(2), idle}) {
    auto const workers = group(held, 2);
    auto const linked = experts(workers, 2, kEnough);
    connect(*linked, *workers, held.size());
    auto const step = random_step(9, 2);
    auto const ended = run_static(*linked, step);
    ASSERT_TRUE(ended && ended->outcome == Outcome::good) << held.size();
    expect_same(ended->out, exact(*expected_of, step), std::to_string(held.size()) + " workers");
  }
}

TEST_P(StaticExchangeTest, WhatItDoesNotTake) {
  auto const step = random_step(5, 2);
  {
    auto const workers = group(plans(2, true), 2);
    StepLayout const layout(5, 2, hidden, GetParam());
    std::size_t const needed = 2 * (layout.out_bytes + layout.back_bytes);
    auto const narrow = experts(workers, 2, needed - 1);
    EXPECT_FALSE(run_static(*narrow, step)) << "no link is ready";
    connect(*narrow, *workers, 2);
    EXPECT_FALSE(run_static(*narrow, step)) << "too many bytes";
    EXPECT_TRUE(run_static(*narrow, random_step(4, 2)));
  }
  {
    auto const workers = group(plans(2, true), 2);
    auto const never = experts(workers, 2, 0);
    connect(*never, *workers, 2);
    EXPECT_FALSE(run_static(*never, step)) << "never";
  }
  {
    auto mixed = plans(2, true);
    mixed[1].by_link = false;
    auto const workers = group(mixed, 2);
    auto const linked = experts(workers, 2, kEnough);
    connect(*linked, *workers, 1);
    EXPECT_FALSE(run_static(*linked, step)) << "one by the host";
  }
  {
    auto some = plans(2, true);
    some[1].held[4].pop_back();
    auto const workers = group(some, 2);
    auto const linked = experts(workers, 2, kEnough);
    connect(*linked, *workers, 2);
    EXPECT_FALSE(run_static(*linked, step)) << "an expert without a holder";
  }
}

TEST_P(StaticExchangeTest, AWorkerMayDieAnywhere) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  std::size_t const last = layers.size() - 1;
  std::pair<Point, std::size_t> const deaths[] = {
      {Point::before_header, 0}, {Point::before_rows, 0},    {Point::behind_rows, 0},     {Point::before_answer, 4},
      {Point::behind_answer, 6}, {Point::before_rows, last}, {Point::before_answer, last}};
  for (auto const& [point, layer] : deaths)
    for (std::size_t const victims : {1U, 2U}) {
      auto const what = "point " + std::to_string(static_cast<int>(point)) + " of layer " + std::to_string(layer) +
                        ", " + std::to_string(victims) + " die";
      auto const workers = group(plans(2, true), 2);
      auto const linked = experts(workers, 2, kEnough);
      connect(*linked, *workers, 2);
      auto const step = random_step(6, 2);
      auto const expected = exact(*expected_of, step);
      for (std::size_t v = 0; v < victims; ++v) workers->worker(v).mortal.die_at(point, layer);
      auto const ended = run_static(*linked, step);
      ASSERT_TRUE(ended && ended->outcome == Outcome::lost) << what;
      EXPECT_EQ(workers->members().size(), 2 - victims) << what;
      EXPECT_FALSE(run_static(*linked, step)) << what << ": its experts are with nobody";
      expect_same(exact(*linked, step), expected, what);
      EXPECT_EQ(linked->static_steps().lost, 1U);
    }
}

// In the recording, or with a graph on its way: links end though they are in graphs, and nothing of these is left.
TEST_P(StaticExchangeTest, AWorkerMayDieInAGraph) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  std::size_t const last = layers.size() - 1;
  struct Death {
    Point point;
    std::size_t passed;
    std::size_t step;  // the second is recorded
  };
  Death const deaths[] = {{Point::before_header, 0, 1}, {Point::before_rows, 2, 1},   {Point::before_answer, last, 1},
                          {Point::before_launch, 0, 2}, {Point::behind_launch, 0, 2}, {Point::before_header, 0, 2}};
  std::size_t const victims = GetParam() == DType::f32 ? 1 : 2;
  for (Death const& death : deaths) {
    auto const what = "point " + std::to_string(static_cast<int>(death.point)) + ", " + std::to_string(death.passed) +
                      " times passed, step " + std::to_string(death.step) + ", " + std::to_string(victims) + " die";
    auto const workers = group(replicas(victims + 1), 2);
    auto const linked = experts(workers, 2, kEnough);
    connect(*linked, *workers, victims + 1);
    auto batches = batches_of(random_step(6, 2));
    for (std::size_t i = 0; i < death.step + 3; ++i) {
      auto const step = random_step(6, 2);
      put(batches, step);
      if (i == death.step)
        for (std::size_t v = 0; v < victims; ++v) workers->worker(v).mortal.die_at(death.point, death.passed);
      auto const ended = run_static(*linked, batches);
      ASSERT_TRUE(ended) << what << ", step " << i;
      if (i != death.step) {
        ASSERT_EQ(ended->outcome, Outcome::good) << what << ", step " << i;
        expect_same(ended->out, exact(*expected_of, step), what);
        EXPECT_EQ(ended->one_launch, i != 0 && i != death.step + 1) << what << ", step " << i;
        continue;
      }
      // Who dies with the graph on its way may have done all that was asked for.
      if (death.point != Point::behind_launch) {
        ASSERT_EQ(ended->outcome, Outcome::lost) << what;
      }
      if (ended->outcome == Outcome::good) expect_same(ended->out, exact(*expected_of, step), what);
      while (workers->members().size() > 1) look(*linked);
      // All of them are known to be dead: the next one is taken by who is left, and recorded anew.
    }
  }
}

TEST_P(StaticExchangeTest, WhoIsLeftServesTheNextStep) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(replicas(3), 2);
  auto const linked = experts(workers, 2, kEnough);
  connect(*linked, *workers, 3);
  auto const step = random_step(6, 2);
  auto const expected = exact(*expected_of, step);
  for (std::size_t v = 0; v < 2; ++v) {
    workers->worker(v).mortal.die_at(Point::before_answer, 3);
    auto const lost = run_static(*linked, step);
    ASSERT_TRUE(lost && lost->outcome == Outcome::lost);
    auto const good = run_static(*linked, step);
    ASSERT_TRUE(good && good->outcome == Outcome::good);
    expect_same(good->out, expected, "after " + std::to_string(v + 1) + " deaths");
  }
  expect_same(exact(*linked, step), expected, "exact");
}

// A model may overflow; a worker that does so alone makes things up. Whose it is shows when the step is run again.
TEST_P(StaticExchangeTest, InfinitiesAreTheModelsOrTheEndOfTheirWorker) {
  for (bool const model_overflows : {true, false}) {
    source.largest = 0.5F;
    auto step = random_step(2, 1);
    for (In& in : step) in.routing.experts = {2, 4};
    auto const by_host = group(plans(1, false), 1);
    auto const expected = exact(*experts(by_host, 1), step);
    source.largest = 1e30F;
    auto const workers = group(plans(2, true), 1);
    auto const linked = experts(workers, 1, kEnough);
    connect(*linked, *workers, 2);  // they have loaded
    if (!model_overflows) source.largest = 0.5F;
    auto const ended = run_static(*linked, step);
    ASSERT_TRUE(ended && ended->outcome == Outcome::lost);
    EXPECT_EQ(workers->members().size(), 2U) << "nobody is condemned yet";
    auto const out = exact(*linked, step);
    EXPECT_EQ(workers->members().size(), model_overflows ? 2U : 0U);
    if (!model_overflows) {
      expect_same(out, expected, "made up");
      EXPECT_NE(workers->last_reason().find("infinities"), std::string::npos) << workers->last_reason();
      continue;
    }
    EXPECT_FALSE(std::ranges::all_of(out.front(), [](float v) { return std::isfinite(v); }));
    for (std::size_t i = 0; i < StaticExchange::kStepsOfDoubt; ++i)
      ASSERT_EQ(linked->begin_step({.tokens = 2, .experts_per_token = 1, .layers = layers}), nullptr);
    EXPECT_TRUE(run_static(*linked, step));
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, StaticExchangeTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
