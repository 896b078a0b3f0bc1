#include "common/transport/in_process_transport.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace expertmesh {

class InProcessTransport::Impl {
  template <class Bytes>
  struct Posted {
    OpId op;
    std::span<Bytes> buffer;
  };

  // First in, first out, of a fixed capacity.
  template <class T>
  class Ring {
   public:
    explicit Ring(std::size_t capacity) : items_(capacity) {}
    [[nodiscard]] std::size_t size() const { return size_; }
    void push(T item) {
      items_[(begin_ + size_) % items_.size()] = item;
      ++size_;
    }
    T pop() {
      T const item = items_[begin_];
      begin_ = (begin_ + 1) % items_.size();
      --size_;
      return item;
    }

   private:
    std::vector<T> items_;
    std::size_t begin_ = 0;
    std::size_t size_ = 0;
  };

 public:
  Impl(InProcessTransportLimits limits, InProcessHandler handler)
      : handler_(std::move(handler)),
        max_ops_per_peer_(limits.max_ops_per_peer),
        peers_(limits.max_peers, Peer(limits.max_ops_per_peer)),
        done_(limits.max_peers * limits.max_ops_per_peer) {}

  OpId post_send(PeerId id, MessageTag tag, std::span<std::byte const> buffer) {
    EM_CHECK(tag == MessageTag(0), "request with tag " << tag);
    Peer& peer = peer_with_room(id);
    peer.requests.push({.op = OpId(++last_op_), .buffer = buffer});
    return OpId(last_op_);
  }

  OpId post_recv(PeerId id, MessageTag tag, std::span<std::byte> buffer) {
    EM_CHECK(tag != MessageTag(0) && tag.value() <= kMaxTag, "answer with tag " << tag);
    Peer& peer = peer_with_room(id);
    peer.replies.push({.op = OpId(++last_op_), .buffer = buffer});
    return OpId(last_op_);
  }

  std::size_t poll(std::span<Completion> completions) {
    for (std::size_t i = 0; i < peers_.size() && done_.size() < completions.size(); ++i) {
      Peer& peer = peers_[i];
      while (peer.requests.size() > 0 && peer.replies.size() > 0 && done_.size() < completions.size()) answer(peer, i);
    }
    std::size_t const count = std::min(done_.size(), completions.size());
    for (Completion& completion : completions.first(count)) {
      completion = done_.pop();
      --peers_[completion.peer.value()].num_ops;
    }
    return count;
  }

  void fence(PeerId id) {
    Peer& peer = serving_peer(id);
    peer.fenced = true;
    while (peer.requests.size() > 0) {
      done_.push({.op = peer.requests.pop().op, .peer = id, .status = OpStatus::cancelled});
    }
    while (peer.replies.size() > 0) {
      done_.push({.op = peer.replies.pop().op, .peer = id, .status = OpStatus::cancelled});
    }
  }

 private:
  struct Peer {
    explicit Peer(std::size_t max_ops) : requests(max_ops), replies(max_ops) {}
    Ring<Posted<std::byte const>> requests;
    Ring<Posted<std::byte>> replies;
    std::size_t num_ops = 0;  // posted and not yet reported
    bool fenced = false;
  };

  Peer& serving_peer(PeerId id) {
    EM_CHECK(id.value() < peers_.size() && !peers_[id.value()].fenced, "peer " << id << " is unknown or fenced");
    return peers_[id.value()];
  }

  Peer& peer_with_room(PeerId id) {
    Peer& peer = serving_peer(id);
    EM_CHECK(peer.num_ops < max_ops_per_peer_, "more than " << max_ops_per_peer_ << " ops of peer " << id);
    ++peer.num_ops;
    return peer;
  }

  void answer(Peer& peer, std::size_t peer_index) {
    PeerId const id(static_cast<PeerId::rep>(peer_index));
    auto const request = peer.requests.pop();
    auto const reply = peer.replies.pop();
    std::size_t const bytes = handler_(id, request.buffer, reply.buffer);
    EM_CHECK(bytes <= reply.buffer.size(), "reply of " << bytes << " bytes into " << reply.buffer.size());
    done_.push({.op = request.op, .peer = id, .bytes = request.buffer.size()});
    done_.push({.op = reply.op, .peer = id, .bytes = bytes});
  }

  InProcessHandler handler_;
  std::size_t max_ops_per_peer_;
  std::vector<Peer> peers_;  // [max_peers]
  Ring<Completion> done_;    // finished, not yet reported
  std::uint64_t last_op_ = 0;
};

InProcessTransport::InProcessTransport(InProcessTransportLimits limits, InProcessHandler handler)
    : impl_(std::make_unique<Impl>(limits, std::move(handler))) {}
InProcessTransport::~InProcessTransport() = default;

void InProcessTransport::register_buffer(std::span<std::byte> /*buffer*/) {}  // any memory of this process will do

OpId InProcessTransport::post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) {
  return impl_->post_send(peer, tag, buffer);
}

OpId InProcessTransport::post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) {
  return impl_->post_recv(peer, tag, buffer);
}

std::size_t InProcessTransport::poll(std::span<Completion> completions) {
  return impl_->poll(completions);
}

void InProcessTransport::fence(PeerId peer) {
  impl_->fence(peer);
}

}  // namespace expertmesh
