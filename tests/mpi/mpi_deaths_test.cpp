// Peers that are out of order, slow, or killed in the middle of a message.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "tests/mpi/transport_under_test.h"

namespace expertmesh {
namespace {

// What holds between processes, whatever their messages go by.
class ProcessTransport : public testing::TestWithParam<bool> {
 protected:
  ProcessTransport() {
    if (GetParam())
      under_test_ = std::make_unique<ShmUnderTest>();
    else
      under_test_ = std::make_unique<MpiUnderTest>();
  }
  std::unique_ptr<ProcessesUnderTest> under_test_;
};
INSTANTIATE_TEST_SUITE_P(Both, ProcessTransport, testing::Bool(),
                         [](auto const& instance) { return instance.param ? "Shm" : "Mpi"; });

TEST_P(ProcessTransport, AnswersFindTheirReceivesInAnyOrder) {
  ProcessesUnderTest& under_test = *under_test_;
  PeerId const peer = under_test.add_peer();
  std::vector<Exchange const*> held;
  for (std::size_t const bytes : {100, 100, 70000, 5}) {
    held.push_back(&under_test.start(peer, bytes, echo::Command::hold));
  }
  under_test.expect_answered(under_test.start(peer, 100));
  for (Exchange const* exchange : held) EXPECT_FALSE(under_test.done(exchange->receive));
  under_test.expect_answered(under_test.start(peer, 1, echo::Command::release));
  for (Exchange const* exchange : held) under_test.expect_answered(*exchange);
}

TEST_P(ProcessTransport, AnswerLongerThanItsBufferFailsAlone) {
  ProcessesUnderTest& under_test = *under_test_;
  PeerId const peer = under_test.add_peer();
  Exchange& exchange = under_test.prepare(1000, echo::Command::answer);
  OpId const receive = under_test.transport().post_recv(peer, TransportUnderTest::tag_of(exchange),
                                                        std::span(exchange.reply).first(999));
  under_test.transport().post_send(peer, echo::kRequestTag, exchange.request);
  EXPECT_EQ(under_test.wait(receive).status, OpStatus::failed);
  under_test.expect_answered(under_test.start(peer, 1000));
}

// A peer that was only stopped comes back after it was fenced and sends its answer: it must not land with the peer that
// took its place, though the tag is the same.
TEST(MpiTransport, AnswerOfAFencedPeerNeverLandsInANewReceive) {
  MpiUnderTest under_test;
  PeerId const slow = under_test.add_peer();
  pid_t const slow_pid = under_test.pid(slow);
  under_test.expect_answered(under_test.start(slow, 64));  // the connection stands
  ASSERT_EQ(::kill(slow_pid, SIGSTOP), 0);
  Exchange& stale = under_test.start(slow, 64, echo::Command::answer_and_exit);
  EXPECT_EQ(under_test.wait(stale.send).status, OpStatus::ok);
  under_test.transport().fence(slow);
  EXPECT_EQ(under_test.wait(stale.receive).status, OpStatus::cancelled);

  PeerId const next = under_test.add_peer();
  Exchange& fresh = under_test.receive_under_tag_of(stale, next, 64);
  ASSERT_EQ(::kill(slow_pid, SIGCONT), 0);
  wait_until_gone(slow_pid);
  for (int i = 0; i < 100; ++i) under_test.poll();  // what it sent is in this process's socket
  EXPECT_FALSE(under_test.done(fresh.receive));
  fresh.send = under_test.transport().post_send(next, echo::kRequestTag, fresh.request);
  under_test.expect_answered(fresh);
}

// Messages in both directions, some half done; then the peer is gone. Ten times, beside two peers that must not notice.
TEST(MpiTransport, KilledPeerHarmsNobodyElse) {
  MpiUnderTest under_test;
  std::array const survivors = {under_test.add_peer(), under_test.add_peer()};
  for (int round = 0; round < 10; ++round) {
    PeerId const victim = under_test.add_peer();
    pid_t const victim_pid = under_test.pid(victim);
    auto const& flood = under_test.start(victim, 64, echo::Command::flood);
    under_test.expect_answered(flood);
    std::vector<OpId> ops;
    for (std::size_t i = 0; i < 24; ++i) {
      Exchange const& exchange = under_test.start(victim, i % 2 == 0 ? 8191 : std::size_t{1} << 20);
      ops.insert(ops.end(), {exchange.send, exchange.receive});
    }
    // Half of what the flood sends meets a receive.
    std::vector<std::vector<std::byte>> buffers(8, std::vector<std::byte>(std::size_t{64} << 10));
    for (auto& buffer : buffers) {
      ops.push_back(under_test.transport().post_recv(victim, MessageTag(kMaxTag), buffer));
    }
    auto const& before = under_test.start(survivors[0], 300000);
    for (int i = 0; i < round * 3; ++i) under_test.poll();
    under_test.kill_peer(victim);
    auto const& during = under_test.start(survivors[1], 300000);
    under_test.expect_answered(before);
    under_test.expect_answered(during);

    under_test.transport().fence(victim);
    for (OpId const op : ops) under_test.wait(op);
    EXPECT_EQ(under_test.transport().quarantined_bytes(), 0);
    for (PeerId const survivor : survivors) under_test.expect_answered(under_test.start(survivor, 65537));
    wait_until_gone(victim_pid);
  }
}

// A stopped peer neither takes what is sent to it nor closes its sockets: once the kernel's buffers are full, the
// library keeps ours.
TEST(MpiTransport, SendTheLibraryHoldsIsCountedUntilItComesBack) {
  MpiUnderTest under_test;
  PeerId const peer = under_test.add_peer();
  PeerId const other = under_test.add_peer();
  under_test.expect_answered(under_test.start(peer, 64));
  ASSERT_EQ(::kill(under_test.pid(peer), SIGSTOP), 0);
  std::vector<Exchange const*> stuck;
  for (int i = 0; i < 24; ++i) stuck.push_back(&under_test.start(peer, echo::kMaxPayload));
  under_test.transport().fence(peer);
  for (Exchange const* exchange : stuck) {
    EXPECT_EQ(under_test.wait(exchange->receive).status, OpStatus::cancelled);
  }
  under_test.expect_answered(under_test.start(other, 65537));
  std::size_t held_bytes = 0;
  for (Exchange const* exchange : stuck) held_bytes += under_test.done(exchange->send) ? 0 : exchange->request.size();
  EXPECT_GT(held_bytes, 0);
  EXPECT_EQ(under_test.transport().quarantined_bytes(), held_bytes);

  under_test.kill_peer(peer);
  for (Exchange const* exchange : stuck) EXPECT_EQ(under_test.wait(exchange->send).status, OpStatus::cancelled);
  EXPECT_EQ(under_test.transport().quarantined_bytes(), 0);
  under_test.expect_answered(under_test.start(other, 65537));
}

}  // namespace
}  // namespace expertmesh
