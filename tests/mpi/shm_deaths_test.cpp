// Processes that share memory with this one, killed at any instruction.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <random>
#include <vector>

#include "tests/mpi/transport_under_test.h"

namespace expertmesh {
namespace {

// Messages in both directions, more than the rings hold, many half written; then the peer is gone. Others must not
// notice, and each answer that did come is whole. EM_FAULT_KILLS: deaths (default 20; the documented long form takes
// 500).
TEST(ShmTransport, KilledPeersHarmNobodyElse) {
  char const* const wanted = std::getenv("EM_FAULT_KILLS");
  int const kills = wanted != nullptr ? std::atoi(wanted) : 20;
  ShmUnderTest under_test;
  Transport& transport = under_test.transport();
  std::array const survivors = {under_test.add_peer(), under_test.add_peer()};
  std::minstd_rand random(4);
  std::size_t answered = 0;
  std::size_t cut = 0;
  for (int round = 0; round < kills; ++round) {
    PeerId const victim = under_test.add_peer();
    std::vector<Exchange const*> exchanges;
    for (std::size_t i = 0; i < 24; ++i) {
      std::array constexpr kSizes{std::size_t{8191}, std::size_t{1} << 20, std::size_t{64}, std::size_t{300000}};
      exchanges.push_back(&under_test.start(victim, kSizes[i % kSizes.size()]));
    }
    bool const floods = round % 2 == 0;  // then the last thing that it does: send what nobody waits for
    if (floods) exchanges.push_back(&under_test.start(victim, 64, echo::Command::flood));
    auto const& before = under_test.start(survivors[0], 300000);
    // From before the first answer to behind the last.
    auto const moment = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 12000);
    while (std::chrono::steady_clock::now() < moment) under_test.poll();
    under_test.kill_peer(victim);
    auto const& during = under_test.start(survivors[1], 300000);
    under_test.expect_answered(before);
    under_test.expect_answered(during);

    transport.fence(victim);
    for (Exchange const* exchange : exchanges) {
      Completion const sent = under_test.wait(exchange->send);
      Completion const received = under_test.wait(exchange->receive);
      ASSERT_TRUE(sent.status == OpStatus::ok || sent.status == OpStatus::cancelled);
      ASSERT_TRUE(received.status == OpStatus::ok || received.status == OpStatus::cancelled);
      if (received.status != OpStatus::ok) {
        ++cut;
        continue;
      }
      ++answered;
      ASSERT_TRUE(std::ranges::equal(std::span(exchange->reply).first(received.bytes), exchange->expected));
    }
    for (PeerId const survivor : survivors) under_test.expect_answered(under_test.start(survivor, 65537));
    ASSERT_EQ(transport.quarantined_bytes(), 0U);
    under_test.forget();
  }
  std::cout << kills << " killed, owing " << cut << " answers of " << answered + cut << "\n";
  if (kills >= 20) {  // some died in the middle of it
    EXPECT_GT(cut, 0U);
    EXPECT_GT(answered, 0U);
  }
}

// One that was only stopped goes on after it was fenced: what it writes is in memory that nobody reads any more.
TEST(ShmTransport, AFencedPeerThatComesBackWritesToNobody) {
  ShmUnderTest under_test;
  PeerId const slow = under_test.add_peer();
  ASSERT_EQ(::kill(under_test.pid(slow), SIGSTOP), 0);
  Exchange& stale = under_test.start(slow, 64);
  EXPECT_EQ(under_test.wait(stale.send).status, OpStatus::ok);
  under_test.transport().fence(slow);
  EXPECT_EQ(under_test.wait(stale.receive).status, OpStatus::cancelled);

  PeerId const next = under_test.add_peer();
  Exchange& fresh = under_test.receive_under_tag_of(stale, next, 64);
  ASSERT_EQ(::kill(under_test.pid(slow), SIGCONT), 0);
  under_test.expect_answered(under_test.start(next, 70000));
  EXPECT_FALSE(under_test.done(fresh.receive));
  fresh.send = under_test.transport().post_send(next, echo::kRequestTag, fresh.request);
  under_test.expect_answered(fresh);
}

}  // namespace
}  // namespace expertmesh
