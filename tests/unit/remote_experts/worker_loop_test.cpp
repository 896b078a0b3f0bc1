// The loop of a worker that several coordinators share: what of theirs is there together is one batch, and whatever one
// of them does, or leaves undone, the others have their answers.
#include "worker/worker_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <thread>

#include "common/kernels/grouped_ffn.h"
#include "tests/support/tiny_experts.h"
#include "tests/unit/remote_experts/thread_transport.h"

namespace expertmesh {
namespace {

using test::ThreadTransport;
using test::ThreadWire;

constexpr std::size_t kExperts = 6;
constexpr std::size_t kMaxRequests = 2;
auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

// One coordinator: its end of the wire, and its lane.
struct Coordinator {
  Coordinator(Doorbell& bell, PeerId id) : peer(id), gate(bell) {}
  PeerId const peer;
  ServingGate gate;
  ThreadWire wire;
  std::shared_ptr<CoordinatorLane> lane;
  std::promise<std::string> failure;
};

class WorkerLoopTest : public ::testing::Test {
 protected:
  ~WorkerLoopTest() override { stop(); }

  void stop() {
    for (auto const& c : coordinators) c->gate.set(ServingGate::Mode::stopped);
    if (thread.joinable()) thread.join();
  }

  // Holds other experts than the next one; local expert e of it is expert first + e.
  std::shared_ptr<ServedPlacement> placement(std::uint32_t first, std::uint32_t epoch) {
    HeldExperts held(model.layers.size());
    for (auto& layer : held)
      for (std::uint32_t e = first; e < kExperts; ++e) layer.push_back(e);
    return std::make_shared<ServedPlacement>(
        ExpertStore(model, held, source, pool, kIgnoreBytes, &shared), exec,
        ExpertServiceOptions{
            .incarnation = Incarnation(1), .epoch = PlacementEpoch(epoch), .wire = model.wire, .limits = limits});
  }

  Coordinator& add_coordinator(std::uint32_t first_expert) {
    auto const id = static_cast<std::uint32_t>(coordinators.size());
    auto& c = *coordinators.emplace_back(std::make_unique<Coordinator>(bell, PeerId(id)));
    c.lane = std::make_shared<CoordinatorLane>(
        CoordinatorLaneOptions{.peer = c.peer,
                               .max_requests = kMaxRequests,
                               .on_failure = [&c](std::string const& why) { c.failure.set_value(why); }},
        c.gate, placement(first_expert, 1));
    c.gate.set(ServingGate::Mode::serving);
    return c;
  }

  // All wires are there from the beginning; what lies on them when the loop begins is there together.
  void run() {
    std::vector<Coordinator*> all;
    for (auto const& c : coordinators) all.push_back(c.get());
    run(all);
  }
  void run(std::vector<Coordinator*> const& served) {
    std::vector<ThreadWire*> wires;
    for (auto const& c : coordinators) wires.push_back(&c->wire);
    transport.emplace(ThreadTransport::Side::worker, wires);
    loop.emplace(*transport, bell, options);
    for (Coordinator* const c : served) loop->add(c->lane);
    thread = std::thread([this] { loop->run(WorkerLoop::WhenEmpty::end); });
  }

  // One row a given number of times, to local expert `expert`.
  static void put(Coordinator& c, AlignedBuffer<std::byte> const& message, std::size_t bytes) {
    std::lock_guard const lock(c.wire.mutex);
    c.wire.to_worker.push_back({.tag = MessageTag(kRequestTag), .bytes = {message.data(), message.data() + bytes}});
  }
  void ask(Coordinator& c, std::size_t layer_index, std::uint32_t expert, std::uint32_t attempt,
           std::uint32_t epoch = 1) {
    AlignedBuffer<std::byte> message(layout.request_bytes(1, 1));
    RequestWriter const request = layout.write_request(message.span(), id_of(layer_index, attempt, epoch), 1, 1);
    request.entries[0] = {.row = 0, .local_expert = expert};
    std::memcpy(request.row(0), row.data(), layout.row_bytes());
    put(c, message, request.bytes);
  }
  [[nodiscard]] ExchangeId id_of(std::size_t layer_index, std::uint32_t attempt, std::uint32_t epoch) const {
    return {.worker_incarnation = 1,
            .placement_epoch = epoch,
            .layer = model.layers[layer_index].layer,
            .attempt = attempt};
  }

  struct Answered {
    std::vector<float> row;
    std::uint64_t begin_ns = 0;
  };
  // Waits for it, as long as it takes.
  Answered answer(Coordinator& c, std::size_t layer_index, std::uint32_t attempt, std::uint32_t epoch = 1) {
    for (;; std::this_thread::yield()) {
      std::lock_guard const lock(c.wire.mutex);
      auto const found = std::ranges::find(c.wire.to_coordinator, MessageTag(attempt), &test::ThreadMessage::tag);
      if (found == c.wire.to_coordinator.end()) continue;
      AlignedBuffer<std::byte> bytes(found->bytes.size());
      std::ranges::copy(found->bytes, bytes.data());
      c.wire.to_coordinator.erase(found);
      auto const parsed = parse_answer(bytes.span(), layout, id_of(layer_index, attempt, epoch), 1);
      if (auto const* error = std::get_if<WireError>(&parsed)) {
        ADD_FAILURE() << describe(*error);
        return {};
      }
      auto const& whole = std::get<Answer>(parsed);
      Answered out{.row = std::vector<float>(layout.hidden()), .begin_ns = whole.header.begin_ns};
      std::memcpy(out.row.data(), whole.row(0), layout.row_bytes());
      return out;
    }
  }

  // What the expert makes of the row, alone.
  std::vector<float> expected(std::size_t layer_index, std::uint32_t expert) {
    FfnWeights const weights = pack_expert(model.layers[layer_index], expert, model.weights, source);
    FfnWeights const* const group = &weights;
    std::vector<float> out(layout.hidden());
    std::array<std::size_t, 2> const offsets{0, 1};
    auto const* const in = reinterpret_cast<std::byte const*>(row.data());
    auto* const to = reinterpret_cast<std::byte*>(out.data());
    Exec const alone(Isa::scalar, own_pool, ExpertService::exec_limits(model, limits, 1));
    grouped_ffn(alone,
                {.groups = {&group, 1}, .offsets = offsets, .in = {&in, 1}, .out = {&to, 1}, .wire = model.wire});
    return out;
  }

  ExpertModelSpec model = test::tiny_model(kExperts, DType::f32);
  test::MadeUpWeights source;
  SharedExperts shared;
  ThreadPool pool{1};
  ThreadPool own_pool{1};
  DispatchLimits limits = DispatchLimits::of(4, kExperts, kExperts);
  DispatchLayout layout{model.layers[0].hidden, model.wire};
  Exec exec{Isa::scalar, pool, ExpertService::exec_limits(model, limits, 2 * kMaxRequests)};
  std::mt19937 random{3};
  std::vector<float> row = test::random_floats(random, model.layers[0].hidden);
  Doorbell bell;
  WorkerLoopOptions options;
  std::vector<std::unique_ptr<Coordinator>> coordinators;
  std::optional<ThreadTransport> transport;
  std::optional<WorkerLoop> loop;
  std::thread thread;
};

TEST_F(WorkerLoopTest, WhatIsThereTogetherIsOneBatchWhoeverSentIt) {
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(2);
  EXPECT_EQ(&a.lane->present().store.expert(0, 4), &b.lane->present().store.expert(0, 2)) << "held once";
  ask(a, 0, 4, 1);  // expert 4, as the next
  ask(b, 0, 2, 1);
  ask(b, 1, 2, 2);  // expert 4 of another layer
  run();
  Answered const of_a = answer(a, 0, 1);
  Answered const first_of_b = answer(b, 0, 1);
  Answered const second_of_b = answer(b, 1, 2);
  EXPECT_EQ(of_a.row, expected(0, 4));
  EXPECT_EQ(first_of_b.row, expected(0, 4));
  EXPECT_EQ(second_of_b.row, expected(1, 4));
  EXPECT_EQ(of_a.begin_ns, first_of_b.begin_ns);
  stop();
  EXPECT_EQ(loop->counts().requests, 3U);
  EXPECT_EQ(loop->counts().batches, 1U);
  EXPECT_EQ(loop->counts().groups, 2U) << "an expert is a group for both, but not two layers' experts";
}

TEST_F(WorkerLoopTest, NobodyWaitsForOneThatSendsNothing) {
  add_coordinator(0);
  Coordinator& b = add_coordinator(1);
  run();
  for (std::uint32_t attempt = 1; attempt <= 5; ++attempt) {
    ask(b, 0, 0, attempt);
    EXPECT_EQ(answer(b, 0, attempt).row, expected(0, 1));
  }
}

TEST_F(WorkerLoopTest, OneThatSendsGarbageLosesItsLaneAndNobodyElseDoes) {
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(1);
  AlignedBuffer<std::byte> garbage(64);
  std::memset(garbage.data(), 7, garbage.size());
  put(a, garbage, garbage.size());
  ask(b, 0, 2, 1);
  run();
  EXPECT_NE(a.failure.get_future().get().find("unreadable request"), std::string::npos);
  a.lane->wait_until_ended();
  EXPECT_EQ(answer(b, 0, 1).row, expected(0, 3));
  ask(b, 1, 2, 2);
  EXPECT_EQ(answer(b, 1, 2).row, expected(1, 3));
  EXPECT_EQ(loop->num_served(), 1U);
}

TEST_F(WorkerLoopTest, OneThatEndsTakesOnlyItsOwnExpertsAlong) {
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(2);
  run();
  a.gate.set(ServingGate::Mode::stopped);
  a.lane->wait_until_ended();
  EXPECT_FALSE(shared.find_or_claim(0, 1).expert) << "nobody else had it placed here";
  EXPECT_TRUE(shared.find_or_claim(0, 2).expert);
  ask(b, 0, 0, 1);
  EXPECT_EQ(answer(b, 0, 1).row, expected(0, 2));
  EXPECT_EQ(loop->num_served(), 1U);
  EXPECT_EQ(loop->num_unrested(), 0U);
}

TEST_F(WorkerLoopTest, ItSleepsWhenAllAreIdleAndWakesForAnyOfThem) {
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(1);
  run();
  a.gate.set(ServingGate::Mode::idle);
  ask(b, 0, 0, 1);
  EXPECT_EQ(answer(b, 0, 1).row, expected(0, 1)) << "one is idle, the other is served";
  b.gate.set(ServingGate::Mode::idle);
  ask(a, 0, 0, 1);
  a.gate.set(ServingGate::Mode::serving);
  EXPECT_EQ(answer(a, 0, 1).row, expected(0, 0));
}

TEST_F(WorkerLoopTest, APlacementIsOneCoordinatorsOwn) {
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(1);
  run();
  a.lane->offer(placement(3, 2));
  ask(a, 0, 5, 1);     // of the one before: expert 5
  ask(a, 0, 0, 2, 2);  // of the next: expert 3
  ask(b, 0, 0, 1);     // expert 1, as ever
  EXPECT_EQ(answer(a, 0, 1).row, expected(0, 5));
  EXPECT_EQ(answer(a, 0, 2, 2).row, expected(0, 3));
  EXPECT_EQ(answer(b, 0, 1).row, expected(0, 1));
  ask(b, 0, 1, 2);
  EXPECT_EQ(answer(b, 0, 2).row, expected(0, 2));
}

// Both have gone from the first layer to the second; at the third there is only one, which waits for the other. Time
// stands still but where the test moves it on.
class GatheringLoopTest : public WorkerLoopTest {
 protected:
  static constexpr std::size_t kLayer = 2;

  GatheringLoopTest() {
    time_passed = std::chrono::milliseconds(0);
    options.longest_wait = std::chrono::milliseconds(10);
    options.now = [] { return Rendezvous::Time(std::chrono::hours(1) + time_passed.load()); };
    run({&a, &b, &other});
    for (std::size_t layer = 0; layer < kLayer; ++layer)
      for (Coordinator* const c : {&a, &b}) {
        wait_a_moment();
        ask(*c, layer, 2, ++attempt);
        answer(*c, layer, attempt);
      }
    wait_a_moment();
    ask(a, kLayer, 3, ++attempt);
    of_a = attempt;
    for (int look = 0; look < 2; ++look) {  // with the second the loop has looked at all that was there before it
      ask(other, 0, 2, ++attempt);
      answer(other, 0, attempt);
    }
    EXPECT_FALSE(is_answered(a, of_a));
  }
  ExpertModelSpec const& with_third_layer() {
    model.layers.push_back(model.layers.back());
    model.layers.back().layer += 1;
    return model;
  }
  static void wait_a_moment() { time_passed = time_passed.load() + std::chrono::milliseconds(1); }
  static bool is_answered(Coordinator& c, std::uint32_t which) {
    std::lock_guard const lock(c.wire.mutex);
    return std::ranges::find(c.wire.to_coordinator, MessageTag(which), &test::ThreadMessage::tag) !=
           c.wire.to_coordinator.end();
  }
  void expect_answer() { EXPECT_EQ(answer(a, kLayer, of_a).row, expected(kLayer, 3)); }

  inline static std::atomic<std::chrono::milliseconds> time_passed;
  std::size_t const num_layers = with_third_layer().layers.size();
  Coordinator& a = add_coordinator(0);
  Coordinator& b = add_coordinator(0);
  Coordinator& other = add_coordinator(0);
  Coordinator& late = add_coordinator(0);
  std::uint32_t attempt = 0;
  std::uint32_t of_a = 0;
};

TEST_F(GatheringLoopTest, ARequestWaitsForTheOtherCoordinatorsOfItsLayer) {
  ask(b, kLayer, 3, ++attempt);
  Answered const first = answer(a, kLayer, of_a);
  Answered const second = answer(b, kLayer, attempt);
  EXPECT_EQ(first.begin_ns, second.begin_ns);
  EXPECT_EQ(first.row, expected(kLayer, 3));
  EXPECT_EQ(second.row, expected(kLayer, 3));
  stop();
  EXPECT_EQ(loop->counts().waits, 1U);
  EXPECT_EQ(loop->counts().meetings, 1U);
  EXPECT_EQ(loop->counts().rows, 8U);
  EXPECT_EQ(loop->counts().groups, 7U);
}

TEST_F(GatheringLoopTest, OneThatEndsIsWaitedForNoLonger) {
  b.gate.set(ServingGate::Mode::stopped);
  expect_answer();
}

TEST_F(GatheringLoopTest, OneThatFailsIsWaitedForNoLonger) {
  AlignedBuffer<std::byte> const garbage(64);
  put(b, garbage, garbage.size());
  b.lane->wait_until_ended();
  expect_answer();
}

TEST_F(GatheringLoopTest, OneThatIsIdleIsWaitedForNoLonger) {
  b.gate.set(ServingGate::Mode::idle);
  expect_answer();
}

TEST_F(GatheringLoopTest, OneThatBecomesIdleWaitsNoLonger) {
  a.gate.set(ServingGate::Mode::idle);
  expect_answer();
}

TEST_F(GatheringLoopTest, ItIsServedWhenTheOtherOneDoesNotComeInTime) {
  for (int i = 0; i < 10; ++i) wait_a_moment();
  expect_answer();
}

TEST_F(GatheringLoopTest, WhoComesEndsTheWait) {
  loop->add(late.lane);
  expect_answer();
}

}  // namespace
}  // namespace expertmesh
