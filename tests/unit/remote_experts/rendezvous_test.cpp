// Who waits for whom, and for how long: two coordinators in made-up time.
#include "worker/rendezvous.h"

#include <gtest/gtest.h>

#include <optional>

namespace expertmesh {
namespace {

using namespace std::chrono_literals;
using Time = Rendezvous::Time;
using Duration = Rendezvous::Duration;

constexpr PeerId kA{1};
constexpr PeerId kB{2};
constexpr PeerId kC{3};
constexpr std::size_t kLayers = 4;

class RendezvousTest : public ::testing::Test {
 protected:
  static constexpr Duration kLongest = 2ms;
  static constexpr Duration kService = 1ms;
  static constexpr Duration kWay = 1ms;      // from an answer to the next layer's request
  static constexpr Duration kPeriod = 20ms;  // from step to step
  static Time at(Duration since_the_start) { return Time{} + 1h + since_the_start; }

  void arrives(PeerId who, std::size_t layer, Duration when, std::uint32_t micro_batch = 0) {
    meet->arrived(who, {.layer = layer, .micro_batch = micro_batch}, at(when));
    meet->decide(at(when));
  }
  bool holds(PeerId who, Duration when) {
    meet->decide(at(when));
    return meet->holds(who);
  }
  void served(Duration when) { meet->served(at(when)); }
  // A step alone, or what is left of it.
  void step(PeerId who, Duration begin, std::size_t end_layer = kLayers) {
    for (std::size_t layer = 0; layer < end_layer; ++layer) {
      Duration const when = begin + layer * (kWay + kService);
      arrives(who, layer, when);
      served(when + kService);
    }
  }
  // Both have begun two steps: what they usually do is known. A's next one is due at 40 ms.
  void learn(Duration phase_of_b, std::size_t end_layer_of_b = kLayers) {
    for (auto const begin : {Duration(0), kPeriod}) {
      step(kA, begin);
      step(kB, begin + phase_of_b, end_layer_of_b);
    }
  }
  // Both have the answers of the first layer at 41 ms.
  void learn_and_begin_together() {
    learn(10ms);
    for (PeerId const who : {kA, kB}) arrives(who, 0, 40ms);
    served(41ms);
  }

  void may_wait(Duration longest) { meet.emplace(longest); }

  std::optional<Rendezvous> meet{kLongest};
};

TEST_F(RendezvousTest, OneAloneNeverWaits) {
  for (int i = 0; i < 5; ++i)
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      Duration const when = i * kPeriod + layer * 2ms;
      arrives(kA, layer, when);
      EXPECT_FALSE(meet->holds_any());
      served(when + kService);
    }
  EXPECT_EQ(meet->counts().waits, 0U);
}

TEST_F(RendezvousTest, AtALayerTheFirstWaitsForOneThatIsOnItsWayThere) {
  learn_and_begin_together();
  auto const before = meet->counts();
  arrives(kA, 1, 41500us);  // B is due at 42 ms
  EXPECT_TRUE(meet->holds(kA));
  EXPECT_TRUE(holds(kA, 41900us));
  arrives(kB, 1, 42ms);
  EXPECT_FALSE(meet->holds_any());
  EXPECT_EQ(meet->counts().waits - before.waits, 1U);
  EXPECT_EQ(meet->counts().meetings - before.meetings, 1U);
  EXPECT_EQ(meet->counts().waited - before.waited, 500us);
}

TEST_F(RendezvousTest, OneThatIsFurtherThanALayerBehindIsNotWaitedFor) {
  learn_and_begin_together();
  arrives(kA, 2, 41100us);
  EXPECT_FALSE(meet->holds_any());
  served(41500us);
  arrives(kB, 1, 41600us);
  served(42600us);
  arrives(kA, 3, 42700us);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, AStepWaitsForOneThatBeginsSoon) {
  learn(1500us);
  arrives(kA, 0, 40ms);
  EXPECT_TRUE(meet->holds(kA)) << "B is due at 41.5 ms";
  arrives(kB, 0, 41600us);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, NobodyWaitsForLongerThanAllowed) {
  learn(2500us);
  arrives(kA, 0, 40ms);
  EXPECT_FALSE(meet->holds_any()) << "B is due at 42.5 ms";

  may_wait(kLongest);
  learn(1500us);
  arrives(kA, 0, 40ms);
  EXPECT_TRUE(holds(kA, 41900us));
  EXPECT_FALSE(holds(kA, 42ms)) << "for B, that was due at 41.5 ms";
}

TEST_F(RendezvousTest, OfTwoTheOneThatWaitsLessWaits) {
  for (Duration const phase : {8ms, 12ms}) {
    may_wait(1h);
    learn(phase);
    arrives(kA, 0, 40ms);
    EXPECT_EQ(meet->holds(kA), phase < kPeriod / 2);
    if (!meet->holds(kA)) served(41ms);
    arrives(kB, 0, 40ms + phase);
    EXPECT_EQ(meet->holds(kB), phase > kPeriod / 2);
    EXPECT_FALSE(meet->holds(kA));
  }
}

TEST_F(RendezvousTest, OneThatHasPassedByIsNotWaitedFor) {
  learn(1500us);
  arrives(kA, 0, 40ms);
  EXPECT_TRUE(meet->holds(kA));
  arrives(kB, 0, 41ms);
  served(42ms);
  arrives(kA, 1, 42500us);
  EXPECT_TRUE(meet->holds(kA));
  arrives(kB, 2, 43ms);  // none of its rows was for this worker's experts of that layer
  EXPECT_FALSE(meet->holds(kA));
  EXPECT_TRUE(meet->holds(kB)) << "now it is a layer ahead";
}

TEST_F(RendezvousTest, OfTwoThatAreHereTheOneALayerAheadWaitsForTheOther) {
  may_wait(4ms);
  learn_and_begin_together();
  meet->arrived(kA, {.layer = 2, .micro_batch = 0}, at(42ms));
  meet->arrived(kB, {.layer = 1, .micro_batch = 0}, at(42ms));
  EXPECT_TRUE(holds(kA, 42ms)) << "it comes in 2 ms";
  EXPECT_FALSE(meet->holds(kB));
  served(43ms);
  EXPECT_TRUE(holds(kA, 43ms));
  arrives(kB, 2, 44ms);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, NoTwoWaitForEachOther) {
  may_wait(1h);
  auto const two_layers = [&](PeerId who, Duration begin) {
    for (std::size_t const layer : {2, 3}) {
      arrives(who, layer, begin + (layer - 2) * 18ms);
      served(begin + (layer - 2) * 18ms + kService);
    }
  };
  two_layers(kB, 0ms);
  two_layers(kA, 0ms);
  arrives(kA, 2, 20ms);
  served(21ms);
  meet->arrived(kA, {.layer = 3, .micro_batch = 0}, at(38ms));  // B comes there next
  meet->arrived(kB, {.layer = 2, .micro_batch = 0}, at(38ms));  // A begins its next step there, at 40 ms
  bool const a_waits = holds(kA, 38ms);
  EXPECT_NE(a_waits, meet->holds(kB));
}

TEST_F(RendezvousTest, TheOtherOneIsServedMeanwhile) {
  may_wait(9ms);
  learn(8ms, 3);
  arrives(kA, 0, 40ms);
  arrives(kB, 3, 40500us);
  EXPECT_TRUE(meet->holds(kA)) << "for its next step";
  EXPECT_FALSE(meet->holds(kB));
}

TEST_F(RendezvousTest, AQuietOneCostsOneWait) {
  may_wait(30ms);  // that is longer than a step: what was due is not long overdue at the next
  learn(8ms);
  arrives(kA, 0, 40ms);
  EXPECT_TRUE(holds(kA, 52900us));
  EXPECT_FALSE(holds(kA, 53ms)) << "it was due at 48 ms, and is late by a quarter of its usual 20 ms";
  EXPECT_EQ(meet->counts().waits, 1U);
  EXPECT_EQ(meet->counts().meetings, 0U);
  EXPECT_EQ(meet->counts().waited, 13ms);
  served(53ms);
  step(kA, 60ms);
  step(kA, 80ms);
  EXPECT_EQ(meet->counts().waits, 1U);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, OneThatHasBeenAwayForLongIsNotWaitedForAtAll) {
  learn(1500us);
  arrives(kA, 0, 60ms);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, AStepOfAPromptCostsOneWait) {
  learn_and_begin_together();
  auto const before = meet->counts();
  Duration answered = 41ms;
  for (std::size_t layer = 1; layer < kLayers; ++layer) {  // B has a long way to each layer
    arrives(kA, layer, answered);
    EXPECT_EQ(meet->holds(kA), layer == 1);
    holds(kA, answered + kLongest);
    served(answered + kLongest);
    arrives(kB, layer, answered + 50ms);
    answered += 51ms;
    served(answered);
  }
  EXPECT_EQ(meet->counts().waits - before.waits, 1U);
  EXPECT_EQ(meet->counts().meetings, before.meetings);
}

TEST_F(RendezvousTest, AfterAPauseOneIsWaitedForAgain) {
  learn(1ms);
  for (int i = 0; i < 3; ++i) {
    step(kA, 10s + i * kPeriod);
    step(kB, 10s + i * kPeriod + 11ms);
  }
  arrives(kA, 0, 10s + 3 * kPeriod);
  arrives(kB, 0, 10s + 3 * kPeriod);
  served(10s + 3 * kPeriod + 1ms);
  arrives(kA, 1, 10s + 3 * kPeriod + 1500us);
  EXPECT_TRUE(meet->holds(kA));
}

TEST_F(RendezvousTest, OneThatLeavesEndsTheWait) {
  learn(1500us);
  arrives(kA, 0, 40ms);
  EXPECT_TRUE(holds(kA, 40100us));
  meet->leave(kB);
  EXPECT_FALSE(holds(kA, 40100us));
}

TEST_F(RendezvousTest, AllThatAreHereWaitForTheLastUntilTheFirstHasWaitedForTooLong) {
  for (bool const comes : {true, false}) {
    may_wait(kLongest);
    for (PeerId const who : {kA, kB, kC})
      for (auto const begin : {Duration(0), kPeriod}) step(who, begin + who.value() * 5ms);
    for (PeerId const who : {kA, kB, kC}) arrives(who, 0, 50ms);
    served(50ms);
    auto const before = meet->counts();
    arrives(kA, 1, 50ms);
    arrives(kB, 1, 50500us);
    EXPECT_TRUE(meet->holds(kA) && meet->holds(kB));
    if (comes)
      arrives(kC, 1, 51ms);
    else
      EXPECT_TRUE(holds(kB, 51900us));
    EXPECT_FALSE(holds(kA, 50ms + kLongest));
    EXPECT_FALSE(meet->holds(kB));
    EXPECT_EQ(meet->counts().waits - before.waits, 2U);
    EXPECT_EQ(meet->counts().meetings - before.meetings, 2U);
  }
}

TEST_F(RendezvousTest, OneThatIsMuchSlowerIsNotWaitedFor) {
  for (int const times : {2, 3}) {
    may_wait(20ms);
    for (auto const begin : {Duration(0), kPeriod}) {
      step(kA, begin);
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        Duration const when = begin + layer * times * (kWay + kService);
        arrives(kB, layer, when);
        served(when + times * kService);
      }
    }
    for (PeerId const who : {kA, kB}) arrives(who, 0, 45ms);
    served(46ms);
    arrives(kA, 1, 47ms);
    EXPECT_EQ(meet->holds(kA), times == 2) << times;
  }
}

TEST_F(RendezvousTest, MicroBatchesOfOneOverlapAndDoNotWait) {
  learn(10ms);
  for (auto const begin : {Duration(0), kPeriod})  // alone, the other micro-batch waits for nobody
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      arrives(kA, layer, begin + layer * 2ms, 1);
      EXPECT_FALSE(meet->holds_any());
      served(begin + layer * 2ms + kService);
    }
  for (std::uint32_t const micro_batch : {0U, 1U}) arrives(kA, 0, 40ms, micro_batch);
  arrives(kB, 0, 40ms);
  served(41ms);
  arrives(kA, 1, 41500us, 0);
  EXPECT_TRUE(meet->holds(kA));
  arrives(kA, 1, 41600us, 1);
  EXPECT_FALSE(meet->holds_any());
}

TEST_F(RendezvousTest, WhatIsOfNoLayerNeitherWaitsNorIsWaitedFor) {
  learn(1500us);
  arrives(kA, Rendezvous::kUnknown, 40ms);
  EXPECT_FALSE(meet->holds_any());
  served(41ms);
  arrives(kB, 0, 41ms);
  EXPECT_FALSE(meet->holds_any());
}

}  // namespace
}  // namespace expertmesh
