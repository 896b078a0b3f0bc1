// A transport with peers that speak echo_protocol.h, and the few steps that every test of it takes.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "common/base/paths.h"
#include "common/transport/in_process_transport.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/mpi_transport.h"
#include "common/transport/shm_transport.h"
#include "tests/mpi/echo_protocol.h"

namespace expertmesh {

constexpr std::chrono::seconds kDeadline{30};  // against hangs only

// Different for every seed, so that no two messages of a test look alike.
inline std::vector<std::byte> payload(std::size_t bytes, std::uint32_t seed) {
  std::vector<std::byte> out(bytes);
  std::uint32_t state = seed * 2654435761U + 1;
  for (std::byte& b : out) {
    state = state * 1664525U + 1013904223U;
    b = static_cast<std::byte>(state >> 24);
  }
  return out;
}

// One request and the receive of its answer; the buffers live as long as it does.
struct Exchange {
  std::vector<std::byte> request;
  std::vector<std::byte> expected;  // answer
  std::vector<std::byte> reply;
  OpId send;
  OpId receive;
};

class TransportUnderTest {
 public:
  virtual ~TransportUnderTest() = default;
  virtual Transport& transport() = 0;
  virtual PeerId add_peer() = 0;

  Exchange& start(PeerId peer, std::size_t bytes, echo::Command command = echo::Command::answer) {
    Exchange& exchange = prepare(bytes, command);
    exchange.receive = transport().post_recv(peer, tag_of(exchange), exchange.reply);
    exchange.send = transport().post_send(peer, echo::kRequestTag, exchange.request);
    return exchange;
  }
  Exchange& start_sending_first(PeerId peer, std::size_t bytes) {
    Exchange& exchange = prepare(bytes, echo::Command::answer);
    exchange.send = transport().post_send(peer, echo::kRequestTag, exchange.request);
    exchange.receive = transport().post_recv(peer, tag_of(exchange), exchange.reply);
    return exchange;
  }

  // Polls once and files what is done.
  void poll() {
    std::array<Completion, 7> done;
    for (Completion const& completion : std::span(done).first(transport().poll(done))) {
      EXPECT_TRUE(completions_.emplace(completion.op, completion).second) << "op reported twice";
    }
  }
  [[nodiscard]] bool done(OpId op) const { return completions_.contains(op); }

  Completion wait(OpId op) {
    auto const deadline = std::chrono::steady_clock::now() + kDeadline;
    while (!done(op)) {
      poll();
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("an op did not complete");
    }
    return completions_.at(op);
  }

  void expect_answered(Exchange const& exchange) {
    EXPECT_EQ(wait(exchange.send).status, OpStatus::ok);
    EXPECT_EQ(wait(exchange.send).bytes, exchange.request.size());
    Completion const received = wait(exchange.receive);
    ASSERT_EQ(received.status, OpStatus::ok);
    ASSERT_EQ(received.bytes, exchange.expected.size());
    EXPECT_TRUE(std::ranges::equal(std::span(exchange.reply).first(received.bytes), exchange.expected));
  }

  Exchange& prepare(std::size_t bytes, echo::Command command) {
    ++last_tag_;
    auto const content = payload(bytes, last_tag_);
    exchanges_.push_back(std::make_unique<Exchange>());
    Exchange& exchange = *exchanges_.back();
    exchange.request = echo::make_request({.answer_tag = last_tag_, .command = command}, content);
    std::ranges::transform(content, std::back_inserter(exchange.expected), echo::changed);
    exchange.reply.resize(bytes + 3);  // an answer may be shorter than its buffer
    return exchange;
  }
  // Of `peer`, under the tag that an exchange with another one had; its request is made and not sent.
  Exchange& receive_under_tag_of(Exchange const& other, PeerId peer, std::size_t bytes) {
    Exchange& exchange = prepare(bytes, echo::Command::answer);
    exchange.request = echo::make_request({.answer_tag = tag_of(other).value()}, payload(bytes, 1));
    exchange.expected = payload(bytes, 1);
    std::ranges::transform(exchange.expected, exchange.expected.begin(), echo::changed);
    exchange.receive = transport().post_recv(peer, tag_of(other), exchange.reply);
    return exchange;
  }
  // Of what is done: the memory of long tests.
  void forget() {
    exchanges_.clear();
    completions_.clear();
  }
  static MessageTag tag_of(Exchange const& exchange) {
    return MessageTag(echo::header_of(exchange.request).answer_tag);
  }

 private:
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::map<OpId, Completion> completions_;
  std::uint32_t last_tag_ = 100;
};

class InProcessUnderTest final : public TransportUnderTest {
 public:
  Transport& transport() override { return transport_; }
  PeerId add_peer() override { return PeerId(num_peers_++); }

 private:
  InProcessTransport transport_{{.max_peers = 8, .max_ops_per_peer = 64},
                                [](PeerId, std::span<std::byte const> request, std::span<std::byte> reply) {
                                  return echo::answer(request, reply);
                                }};
  std::uint32_t num_peers_ = 0;
};

// Its peers are processes.
class ProcessesUnderTest : public TransportUnderTest {
 public:
  virtual void kill_peer(PeerId peer) = 0;
};

void wait_until_gone(pid_t pid);

inline std::filesystem::path echo_peer_program() {
  return executable_dir() / "mpi_echo_peer";
}

// Its processes end with it: a death that Open MPI's daemon meets in the middle of a spawn may cost it that spawn.
class MpiUnderTest final : public ProcessesUnderTest {
 public:
  ~MpiUnderTest() override;
  Transport& transport() override { return transport_; }
  PeerId add_peer() override;
  [[nodiscard]] pid_t pid(PeerId peer) const { return pids_.at(peer); }
  void kill_peer(PeerId peer) override;

 private:
  MpiTransport transport_{{.max_ops = 256}};
  std::map<PeerId, pid_t> pids_;
};

// Its processes are children of this one.
class ShmUnderTest final : public ProcessesUnderTest {
 public:
  ~ShmUnderTest() override;
  Transport& transport() override { return transport_; }
  PeerId add_peer() override;
  [[nodiscard]] pid_t pid(PeerId peer) const { return pids_.at(peer); }
  void kill_peer(PeerId peer) override;  // returns when it is gone

 private:
  ShmTransport transport_{{.max_ops_per_peer = 64}};
  std::map<PeerId, pid_t> pids_;
  std::uint32_t last_peer_ = 0;
};

}  // namespace expertmesh
