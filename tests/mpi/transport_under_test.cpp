#include "tests/mpi/transport_under_test.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

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

ShmUnderTest::~ShmUnderTest() {
  while (!pids_.empty()) kill_peer(pids_.begin()->first);
}

PeerId ShmUnderTest::add_peer() {
  // Four messages each way: the tests have more under way.
  ShmRingShape const ring{.num_slots = 4, .slot_bytes = echo::kMaxPayload + sizeof(echo::Header)};
  ShmArea area = ShmArea::make({.to_worker = ring, .to_coordinator = ring});
  std::string program = echo_peer_program();
  std::string offer = area.offer();
  std::array<char*, 3> const arguments{program.data(), offer.data(), nullptr};
  pid_t pid = 0;
  if (::posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments.data(), environ) != 0)
    throw std::runtime_error("no process");
  PeerId const peer(++last_peer_);
  pids_[peer] = pid;
  auto const deadline = std::chrono::steady_clock::now() + kDeadline;
  while (!area.accepted() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_TRUE(area.accepted());
  area.withdraw();
  transport_.add_peer(peer, std::move(area));
  std::int64_t said = 0;
  wait(transport_.post_recv(peer, MessageTag(1), std::as_writable_bytes(std::span(&said, 1))));
  EXPECT_EQ(said, pid);
  return peer;
}

void ShmUnderTest::kill_peer(PeerId peer) {
  pid_t const pid = pids_.at(peer);
  pids_.erase(peer);
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
}

}  // namespace expertmesh
