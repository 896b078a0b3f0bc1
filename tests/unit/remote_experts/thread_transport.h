// A transport between threads of one process: mailboxes, as MPI orders them.
#pragma once
#include <algorithm>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "common/transport/transport.h"

namespace expertmesh::test {

struct ThreadMessage {
  MessageTag tag;
  std::vector<std::byte> bytes;
};

// Between the coordinator and one worker.
struct ThreadWire {
  std::mutex mutex;
  std::deque<ThreadMessage> to_worker;
  std::deque<ThreadMessage> to_coordinator;
};

// One end, of one thread.
class ThreadTransport final : public Transport {
 public:
  enum class Side : std::uint8_t { coordinator, worker };
  // wires: by peer.
  ThreadTransport(Side side, std::vector<ThreadWire*> wires) : side_(side), wires_(std::move(wires)) {}

  std::function<void()> before_send{};  // of the worker's tests

  [[nodiscard]] std::string_view name() const override { return "threads"; }
  void register_buffer(std::span<std::byte> /*buffer*/) override {}
  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override {
    if (before_send) before_send();
    ThreadWire& wire = *wires_[peer.value()];
    std::lock_guard const lock(wire.mutex);
    (side_ == Side::worker ? wire.to_coordinator : wire.to_worker)
        .push_back({.tag = tag, .bytes = {buffer.begin(), buffer.end()}});
    done_.push_back({.op = OpId(++num_ops_), .peer = peer, .status = OpStatus::ok, .bytes = buffer.size()});
    return OpId(num_ops_);
  }
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override {
    receives_.push_back({.op = OpId(++num_ops_), .peer = peer, .tag = tag, .buffer = buffer});
    return OpId(num_ops_);
  }
  std::size_t poll(std::span<Completion> completions) override {
    for (std::size_t peer = 0; peer < wires_.size(); ++peer) {
      // For all receives at once: a message that comes in between must not pass an earlier receive by.
      std::lock_guard const lock(wires_[peer]->mutex);
      std::erase_if(receives_, [&](Receive const& receive) { return receive.peer.value() == peer && match(receive); });
    }
    std::size_t const count = std::min(completions.size(), done_.size());
    std::copy_n(done_.begin(), count, completions.begin());
    done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
    return count;
  }
  void fence(PeerId peer) override {
    std::erase_if(receives_, [&](Receive const& receive) {
      if (receive.peer != peer) return false;
      done_.push_back({.op = receive.op, .peer = peer, .status = OpStatus::cancelled, .bytes = 0});
      return true;
    });
  }
  [[nodiscard]] std::size_t quarantined_bytes() const override { return 0; }

 private:
  struct Receive {
    OpId op;
    PeerId peer;
    MessageTag tag;
    std::span<std::byte> buffer;
  };
  bool match(Receive const& receive) {
    ThreadWire& wire = *wires_[receive.peer.value()];
    auto& inbox = side_ == Side::worker ? wire.to_worker : wire.to_coordinator;
    auto const found = std::ranges::find(inbox, receive.tag, &ThreadMessage::tag);
    if (found == inbox.end()) return false;
    std::ranges::copy(found->bytes, receive.buffer.begin());
    done_.push_back({.op = receive.op, .peer = receive.peer, .status = OpStatus::ok, .bytes = found->bytes.size()});
    inbox.erase(found);
    return true;
  }

  Side side_;
  std::vector<ThreadWire*> wires_;
  std::deque<Receive> receives_;
  std::deque<Completion> done_;
  std::uint64_t num_ops_ = 0;
};

}  // namespace expertmesh::test
