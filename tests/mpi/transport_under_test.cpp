#include "tests/mpi/transport_under_test.h"

#include <signal.h>

namespace expertmesh {

MpiUnderTest::~MpiUnderTest() {
  for (auto const& [peer, pid] : pids_) ::kill(pid, SIGKILL);
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
