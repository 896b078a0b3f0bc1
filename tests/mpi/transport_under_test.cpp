#include "tests/mpi/transport_under_test.h"

#include <signal.h>

#include <chrono>
#include <thread>

namespace expertmesh {

void wait_until_gone(pid_t pid) {
  auto const deadline = std::chrono::steady_clock::now() + kDeadline;
  while (::kill(pid, 0) == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_NE(::kill(pid, 0), 0) << "process " << pid << " is still there";
}

MpiUnderTest::~MpiUnderTest() {
  for (auto const& [peer, pid] : pids_) ::kill(pid, SIGKILL);
  for (auto const& [peer, pid] : pids_) wait_until_gone(pid);
}

PeerId MpiUnderTest::add_peer() {
  static std::uint32_t last_peer = 0;
  PeerId const peer(++last_peer);
  transport_.add_peer(peer, spawn_worker(echo_peer_program(), {}, kDeadline));
  std::int64_t pid = 0;
  wait(transport_.post_recv(peer, MessageTag(1), std::as_writable_bytes(std::span(&pid, 1))));
  pids_[peer] = static_cast<pid_t>(pid);
  return peer;
}

void MpiUnderTest::kill_peer(PeerId peer) {
  ASSERT_EQ(::kill(pids_.at(peer), SIGKILL), 0);
  pids_.erase(peer);
}

}  // namespace expertmesh
