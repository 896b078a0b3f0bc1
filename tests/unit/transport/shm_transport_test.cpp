// Memory that two processes agree on, the transport through it, and the transport that is made of several.
#include "common/transport/shm_transport.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/transport/in_process_transport.h"
#include "common/transport/mixed_transport.h"

namespace expertmesh {
namespace {

constexpr ShmShape kShape{.to_worker = {.num_slots = 2, .slot_bytes = 1000},
                          .to_coordinator = {.num_slots = 3, .slot_bytes = 70}};
constexpr PeerId kPeer{4};
using Bytes = std::vector<std::byte>;

std::string error_of(std::string const& offer) {
  try {
    ShmArea::open(offer);
  } catch (ShmError const& error) {
    return error.what();
  }
  return "";
}

TEST(ShmArea, IsSharedOnlyWhenTheOtherEndHasSaidSoInIt) {
  ShmArea const ours = ShmArea::make(kShape);
  EXPECT_FALSE(ours.accepted());
  ShmArea theirs = ShmArea::open(ours.offer());
  EXPECT_EQ(theirs.size(), kShape.memory_bytes());
  EXPECT_EQ(ours.max_message_bytes(), 1000U);
  EXPECT_EQ(theirs.max_message_bytes(), 70U);
  EXPECT_FALSE(ours.accepted());
  theirs.accept();
  EXPECT_TRUE(ours.accepted());
}

TEST(ShmArea, AnotherProcessOpensItUntilItIsWithdrawn) {
  ShmArea ours = ShmArea::make(kShape);
  std::string const offer = ours.offer();
  auto const opened_by_child = [&] {
    pid_t const child = ::fork();
    if (child == 0) {
      // Not the file that it has inherited.
      ::close(std::stoi(offer.substr(offer.rfind('/') + 1)));
      try {
        ShmArea::open(offer).accept();
        ::_exit(0);
      } catch (ShmError const&) {
        ::_exit(1);
      }
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  EXPECT_TRUE(opened_by_child());
  EXPECT_TRUE(ours.accepted());
  ours.withdraw();
  EXPECT_FALSE(opened_by_child());
  EXPECT_TRUE(ours.accepted());
}

TEST(ShmArea, OtherMemoryThanWasOfferedIsRefused) {
  ShmArea const ours = ShmArea::make(kShape);
  std::string const offer = ours.offer();
  std::string const path = offer.substr(offer.find(' '));
  EXPECT_EQ(error_of(offer), "");
  for (std::string const& bad : {std::string(), std::string("x"), std::string("12"), path, "1" + path, "0" + path})
    EXPECT_NE(error_of(bad), "") << bad;
  EXPECT_NE(error_of("7 /proc/self/fd/1000000").find("No such file"), std::string::npos);
  EXPECT_NE(error_of("7 /dev/zero"), "");
  // What can be cut off under its reader is not mapped at all.
  int const file = ::memfd_create("cut", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(file, static_cast<off_t>(kShape.memory_bytes())), 0);
  EXPECT_NE(error_of("0 /proc/self/fd/" + std::to_string(file)).find("other memory"), std::string::npos);
  ::close(file);
}

// Every 8 bytes of what the area says of itself, changed: refused, or its rings lie in it.
TEST(ShmArea, WhatItSaysOfItselfIsChecked) {
  ShmArea const ours = ShmArea::make(kShape);
  std::string const offer = ours.offer();
  int const file = ::open(offer.substr(offer.find(' ') + 1).c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(file, 0);
  std::size_t num_refused = 0;
  for (off_t at = 0; at < 56; at += 8) {
    std::uint64_t was = 0;
    ASSERT_EQ(::pread(file, &was, sizeof was, at), 8);
    for (std::uint64_t const value :
         {std::uint64_t{0}, std::uint64_t{1} << 40, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
      ASSERT_EQ(::pwrite(file, &value, sizeof value, at), 8);
      std::string const error = error_of(offer);
      num_refused += error.empty() ? 0 : 1;
      ASSERT_EQ(::pwrite(file, &was, sizeof was, at), 8);
    }
  }
  EXPECT_GE(num_refused, 6 * 4 - 2);  // not `reply`; a ring of no bytes is one
  EXPECT_EQ(error_of(offer), "");
  ::close(file);
}

TEST(ShmArea, CannotBeMadeSmaller) {
  ShmArea const ours = ShmArea::make(kShape);
  std::string const offer = ours.offer();
  int const file = ::open(offer.substr(offer.find(' ') + 1).c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(file, 0);
  EXPECT_NE(::ftruncate(file, 1), 0);
  ::close(file);
}

// Both ends in one process.
struct Pair {
  Pair() {
    ShmArea ours = ShmArea::make(kShape);
    theirs.add_peer(kPeer, ShmArea::open(ours.offer()));
    coordinator.add_peer(kPeer, std::move(ours));
  }
  ShmTransport coordinator{{.max_ops_per_peer = 16}};
  ShmTransport theirs{{.max_ops_per_peer = 16}};
};

Completion poll_one(Transport& transport) {
  std::array<Completion, 2> done;
  EXPECT_EQ(transport.poll(done), 1U);
  return done[0];
}

TEST(ShmTransport, AFullRingKeepsTheOrderAndLosesNothing) {
  Pair pair;
  std::vector<Bytes> sent;
  std::vector<OpId> sends;
  for (std::uint8_t i = 0; i < 10; ++i) {
    sent.emplace_back(100 + i, std::byte{i});
    sends.push_back(pair.coordinator.post_send(kPeer, MessageTag(0), sent.back()));
  }
  std::array<Completion, 16> done;
  EXPECT_EQ(pair.coordinator.poll(done), 2U);  // there is room for two
  EXPECT_EQ(pair.coordinator.poll(done), 0U);
  for (std::uint8_t i = 0; i < 10; ++i) {
    Bytes buffer(1000);
    OpId const op = pair.theirs.post_recv(kPeer, MessageTag(0), buffer);
    Completion const received = poll_one(pair.theirs);
    EXPECT_EQ(received.op, op);
    EXPECT_EQ(received.status, OpStatus::ok);
    buffer.resize(received.bytes);
    EXPECT_EQ(buffer, sent[i]);
    EXPECT_EQ(pair.coordinator.poll(done), i < 8 ? 1U : 0U);
    if (i < 8) {
      EXPECT_EQ(done[0].op, sends[i + 2]);
      EXPECT_EQ(done[0].bytes, sent[i + 2].size());
    }
  }
}

TEST(ShmTransport, AMessageNobodyWaitsForKeepsTheNextOnesBack) {
  Pair pair;
  Bytes const first(5, std::byte{1});
  Bytes const second(6, std::byte{2});
  pair.theirs.post_send(kPeer, MessageTag(1), first);
  pair.theirs.post_send(kPeer, MessageTag(2), second);
  Bytes for_second(6);
  OpId const op2 = pair.coordinator.post_recv(kPeer, MessageTag(2), for_second);
  std::array<Completion, 4> done;
  EXPECT_EQ(pair.coordinator.poll(done), 0U);
  pair.coordinator.wait(PollPause::sleep);  // no sleep of a millisecond that only a further message would end
  Bytes for_first(5);
  OpId const op1 = pair.coordinator.post_recv(kPeer, MessageTag(1), for_first);
  ASSERT_EQ(pair.coordinator.poll(done), 2U);
  EXPECT_EQ(done[0].op, op1);
  EXPECT_EQ(done[1].op, op2);
  EXPECT_EQ(for_first, first);
  EXPECT_EQ(for_second, second);
}

TEST(ShmTransport, ABrokenPeerFailsItsOpsAndNobodyElses) {
  for (bool const breaks_reading : {true, false}) {
    ShmTransport coordinator({.max_ops_per_peer = 16});
    ShmArea broken = ShmArea::make(kShape);
    ShmArea sound = ShmArea::make(kShape);
    std::string const offer = broken.offer();
    int const file = ::open(offer.substr(offer.find(' ') + 1).c_str(), O_RDWR | O_CLOEXEC);
    ShmTransport theirs({.max_ops_per_peer = 16});
    theirs.add_peer(PeerId(1), ShmArea::open(offer));
    theirs.add_peer(PeerId(2), ShmArea::open(sound.offer()));
    coordinator.add_peer(PeerId(1), std::move(broken));
    coordinator.add_peer(PeerId(2), std::move(sound));
    Bytes answer(70);
    Bytes answer_of_sound(70);
    Bytes const request(1000);
    std::map<OpId, OpStatus> seen;
    auto const poll = [&] {
      std::array<Completion, 16> done;
      for (Completion const& c : std::span(done).first(coordinator.poll(done))) seen[c.op] = c.status;
    };
    OpId const receive = coordinator.post_recv(PeerId(1), MessageTag(9), answer);
    OpId const of_sound = coordinator.post_recv(PeerId(2), MessageTag(9), answer_of_sound);
    OpId send;
    for (int i = 0; i < 3; ++i) send = coordinator.post_send(PeerId(1), MessageTag(0), request);
    std::uint64_t const wrong = ~std::uint64_t{0};
    std::size_t const to_coordinator = 4096 + kShape.to_worker.memory_bytes();
    if (breaks_reading) {
      theirs.post_send(PeerId(1), MessageTag(9), Bytes(3));
      ASSERT_EQ(::pwrite(file, &wrong, 8, static_cast<off_t>(to_coordinator + sizeof(shm::RingHead) + 8)), 8);  // bytes
    } else {
      ASSERT_EQ(::pwrite(file, &wrong, 8, 4096), 8);  // taken
    }
    poll();
    EXPECT_EQ(seen.at(receive), OpStatus::failed);
    EXPECT_EQ(seen.at(send), OpStatus::failed);
    OpId const later = coordinator.post_recv(PeerId(1), MessageTag(9), answer);
    poll();
    EXPECT_EQ(seen.at(later), OpStatus::failed);
    coordinator.fence(PeerId(1));
    EXPECT_FALSE(seen.contains(of_sound));
    theirs.post_send(PeerId(2), MessageTag(9), Bytes(3));
    poll();
    EXPECT_EQ(seen.at(of_sound), OpStatus::ok);
    ::close(file);
  }
}

TEST(ShmTransport, AFencedPeersMemoryGoes) {
  auto const mapped = [] {
    std::ifstream maps("/proc/self/maps");
    std::size_t count = 0;
    for (std::string line; std::getline(maps, line);) count += line.find("expertmesh-messages") != line.npos ? 1 : 0;
    return count;
  };
  ASSERT_EQ(mapped(), 0U);
  ShmTransport transport({.max_ops_per_peer = 16});
  ShmArea area = ShmArea::make(kShape);
  area.withdraw();
  transport.add_peer(kPeer, std::move(area));
  EXPECT_EQ(mapped(), 1U);
  transport.fence(kPeer);
  EXPECT_EQ(mapped(), 0U);
}

// Both ends sleep whenever there is nothing, one of them for several peers.
TEST(ShmTransport, ASleeperIsWokenByAnyPeer) {
  ShmTransport coordinator({.max_ops_per_peer = 16});
  std::vector<std::string> offers;
  std::vector<ShmArea> areas;
  for (std::uint32_t i = 0; i < 3; ++i) {
    areas.push_back(ShmArea::make(kShape));
    offers.push_back(areas.back().offer());
  }
  std::thread workers([&] {
    ShmTransport theirs({.max_ops_per_peer = 16});
    for (std::uint32_t i = 0; i < 3; ++i) theirs.add_peer(PeerId(i), ShmArea::open(offers[i]));
    std::array<Completion, 8> done;
    Bytes request(8);
    for (int round = 0; round < 300; ++round) {
      PeerId const peer(static_cast<std::uint32_t>(round % 3));
      OpId const op = theirs.post_recv(peer, MessageTag(0), request);
      for (bool received = false; !received;) {
        std::size_t const count = theirs.poll(done);
        for (Completion const& c : std::span(done).first(count)) received |= c.op == op;
        if (count == 0) theirs.wait(PollPause::sleep);
      }
      theirs.post_send(peer, MessageTag(1), request);
    }
  });
  std::vector<std::size_t> opened(3);
  std::array<Completion, 8> done;
  Bytes const request(8, std::byte{3});
  Bytes answer(8);
  for (std::uint32_t i = 0; i < 3; ++i) coordinator.add_peer(PeerId(i), std::move(areas[i]));
  for (int round = 0; round < 300; ++round) {
    PeerId const peer(static_cast<std::uint32_t>(round % 3));
    OpId const op = coordinator.post_recv(peer, MessageTag(1), answer);
    coordinator.post_send(peer, MessageTag(0), request);
    for (bool received = false; !received;) {
      std::size_t const count = coordinator.poll(done);
      for (Completion const& c : std::span(done).first(count)) received |= c.op == op;
      if (count == 0) coordinator.wait(PollPause::sleep);
    }
    ASSERT_EQ(answer, request);
  }
  workers.join();
}

TEST(ShmTransport, ASleepingPeerIsToldByDeliverAndByWaits) {
  ShmArea ours = ShmArea::make(kShape);
  ShmArea const area = ShmArea::open(ours.offer());
  ShmTransport coordinator({.max_ops_per_peer = 16});
  coordinator.add_peer(kPeer, std::move(ours));
  ShmRingReader peer = area.reader();
  std::array<void (*)(Transport&), 4> constexpr kWays{
      [](Transport& t) { t.deliver(); }, [](Transport& t) { t.wait(PollPause::yield); },
      [](Transport& t) { t.wait(PollPause::sleep); }, [](Transport& t) { t.wait_for(kPeer); }};
  for (auto const& way : kWays) {
    ASSERT_TRUE(peer.begin_wait());
    coordinator.post_send(kPeer, MessageTag(0), Bytes(8));
    EXPECT_EQ(peer.waiting(), 1U);
    way(coordinator);
    EXPECT_EQ(peer.waiting(), 0U);
    ASSERT_TRUE(peer.front());
    peer.take();
    std::array<Completion, 1> done;
    EXPECT_EQ(coordinator.poll(done), 1U);
  }
}

// Each thread for a peer of its own, which the other's messages do not concern.
TEST(ShmTransport, ThreadsWaitForAPeerEach) {
  constexpr std::uint32_t kRounds = 300;
  ShmTransport coordinator({.max_ops_per_peer = 16});
  ShmTransport theirs({.max_ops_per_peer = 16});
  for (std::uint32_t i = 0; i < 2; ++i) {
    ShmArea area = ShmArea::make(kShape);
    theirs.add_peer(PeerId(i), ShmArea::open(area.offer()));
    coordinator.add_peer(PeerId(i), std::move(area));
  }
  Bytes const message(8, std::byte{1});
  std::array<Bytes, 2> answers{Bytes(8), Bytes(8)};
  std::array<Completion, 8> done;
  std::array<Completion, 8> done_there;
  auto const take_both = [&] {
    for (std::uint32_t i = 0; i < 2; ++i) coordinator.post_recv(PeerId(i), MessageTag(1), answers[i]);
    for (std::size_t taken = 0; taken < 2;) taken += coordinator.poll(done);
  };
  EXPECT_FALSE(coordinator.wait_for(PeerId(0)));
  theirs.post_send(PeerId(1), MessageTag(1), message);
  EXPECT_FALSE(coordinator.wait_for(PeerId(0)));
  EXPECT_TRUE(coordinator.wait_for(PeerId(1)));
  theirs.post_send(PeerId(0), MessageTag(1), message);
  take_both();
  EXPECT_EQ(answers[0], message);

  std::atomic<std::uint32_t> asked = 0;
  std::thread workers([&] {
    for (std::uint32_t round = 1; round <= kRounds; ++round) {
      asked.wait(round - 1);
      for (std::uint32_t i = 0; i < 2; ++i) theirs.post_send(PeerId((i + round) % 2), MessageTag(1), message);
      theirs.deliver();
      theirs.poll(done_there);
    }
  });
  ThreadPool pool(2);
  for (std::uint32_t round = 1; round <= kRounds; ++round) {
    asked = round;
    asked.notify_one();
    pool.parallel_for(2, [&](std::size_t i, std::size_t, std::size_t) {
      while (!coordinator.wait_for(PeerId(static_cast<std::uint32_t>(i)))) {
      }
    });
    take_both();
  }
  workers.join();
}

TEST(MixedTransport, ReportsEveryPartsOpsWithIdsOfItsOwn) {
  Pair pair;
  InProcessTransport local({.max_peers = 3},
                           [](PeerId, std::span<std::byte const> request, std::span<std::byte> reply) {
                             std::ranges::copy(request, reply.begin());
                             return request.size();
                           });
  MixedTransport mixed({&local, &pair.coordinator});
  mixed.add_peer(PeerId(2), 0);
  mixed.add_peer(kPeer, 1);
  Bytes const a(10, std::byte{1});
  Bytes const b(20, std::byte{2});
  Bytes from_local(10);
  Bytes from_shm(20);
  std::map<OpId, std::pair<PeerId, std::size_t>> wanted;  // with its bytes
  wanted[mixed.post_recv(PeerId(2), MessageTag(1), from_local)] = {PeerId(2), 10};
  wanted[mixed.post_send(PeerId(2), MessageTag(0), a)] = {PeerId(2), 10};
  wanted[mixed.post_recv(kPeer, MessageTag(1), from_shm)] = {kPeer, 20};
  wanted[mixed.post_send(kPeer, MessageTag(0), a)] = {kPeer, 10};
  ASSERT_EQ(wanted.size(), 4U);
  pair.theirs.post_send(kPeer, MessageTag(1), b);
  for (int polls = 0; !wanted.empty(); ++polls) {
    ASSERT_LT(polls, 100);
    std::array<Completion, 1> done;  // the parts share the room
    if (mixed.poll(done) == 0) continue;
    ASSERT_TRUE(wanted.contains(done[0].op));
    EXPECT_EQ(done[0].peer, wanted[done[0].op].first);
    EXPECT_EQ(done[0].bytes, wanted[done[0].op].second);
    wanted.erase(done[0].op);
  }
  EXPECT_EQ(from_local, a);
  EXPECT_EQ(from_shm, b);

  OpId const cut = mixed.post_recv(kPeer, MessageTag(2), from_shm);
  mixed.fence(kPeer);
  Completion const done = poll_one(mixed);
  EXPECT_EQ(done.op, cut);
  EXPECT_EQ(done.status, OpStatus::cancelled);
  EXPECT_EQ(mixed.quarantined_bytes(), 0U);
}

}  // namespace
}  // namespace expertmesh
