#include "common/transport/shm_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/transport/futex.h"

namespace expertmesh {
namespace {

// Looks in vain before a thread with a core of its own gives it away for a moment: some microseconds.
constexpr std::size_t kSpins = 200;
// Without a core of its own: what ends a wait besides a message (a death, a word of the control plane) is seen so late.
constexpr std::chrono::milliseconds kLongestSleep{1};
constexpr std::size_t kMostSleptFor = 128;  // peers, of futex_wait_for_any()

}  // namespace

class ShmTransport::Impl {
 public:
  explicit Impl(ShmTransportLimits limits) : limits_(limits) { asleep_.reserve(kMostSleptFor); }

  void add_peer(PeerId id, ShmArea area) {
    EM_CHECK(find(id) == peers_.end(), "peer " << id << " is there already");
    peers_.push_back(std::make_unique<Peer>(id, std::move(area)));
    peers_.back()->sends.reserve(limits_.max_ops_per_peer);
    peers_.back()->receives.reserve(limits_.max_ops_per_peer);
    done_.reserve(done_.size() + peers_.size() * limits_.max_ops_per_peer);
  }

  OpId post_send(PeerId id, MessageTag tag, std::span<std::byte const> buffer) {
    Peer& peer = peer_for_op(id, tag);
    EM_CHECK(buffer.size() <= peer.area.max_message_bytes(),
             "message of " << buffer.size() << " bytes, at most " << peer.area.max_message_bytes());
    peer.sends.push_back({.op = OpId(++last_op_), .tag = tag, .buffer = buffer});
    send(peer);
    return OpId(last_op_);
  }

  OpId post_recv(PeerId id, MessageTag tag, std::span<std::byte> buffer) {
    peer_for_op(id, tag).receives.push_back({.op = OpId(++last_op_), .tag = tag, .buffer = buffer});
    return OpId(last_op_);
  }

  std::size_t poll(std::span<Completion> completions) {
    for (auto const& peer : peers_) {
      receive(*peer);
      if (!peer->sends.empty()) send(*peer);
      give_up_if_broken(*peer);
    }
    std::size_t const count = std::min(completions.size(), done_.size());
    std::copy_n(done_.begin(), count, completions.begin());
    done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
    if (count != 0) looks_in_vain_ = 0;
    return count;
  }

  void deliver() {
    for (auto const& peer : peers_) peer->writer.wake_reader();
  }

  void wait(PollPause pause) {
    deliver();
    if (!done_.empty()) return;
    if (pause == PollPause::yield) {
      if (++looks_in_vain_ < kSpins)
        spin();
      else
        pause_polling(pause);
      return;
    }
    bool const will_be_woken =
        !peers_.empty() && peers_.size() <= kMostSleptFor &&
        std::ranges::none_of(peers_, [](auto const& peer) { return peer->blocked || !peer->sends.empty(); });
    if (!will_be_woken) return pause_polling(pause);
    bool nothing_there = true;
    for (auto const& peer : peers_) nothing_there &= peer->reader.begin_wait();
    if (nothing_there) {
      asleep_.clear();
      for (auto const& peer : peers_) asleep_.push_back(&peer->reader.waiting());
      futex_wait_for_any(asleep_, kLongestSleep);
    }
    for (auto const& peer : peers_) peer->reader.end_wait();
  }

  bool wait_for(PeerId id) {
    Peer& peer = known(id);
    peer.writer.wake_reader();
    if (!peer.reader.begin_wait()) return true;
    std::array<std::atomic<std::uint32_t>*, 1> const word{&peer.reader.waiting()};
    futex_wait_for_any(word, kLongestSleep);
    peer.reader.end_wait();
    return peer.reader.anything();
  }

  void fence(PeerId id) {
    auto const place = find(id);
    EM_CHECK(place != peers_.end(), "peer " << id << " is unknown or fenced");
    finish_all(**place, OpStatus::cancelled);
    peers_.erase(place);
  }

 private:
  template <class Bytes>
  struct Posted {
    OpId op;
    MessageTag tag;
    std::span<Bytes> buffer;
  };
  struct Peer {
    Peer(PeerId peer_id, ShmArea its_area)
        : id(peer_id), area(std::move(its_area)), writer(area.writer()), reader(area.reader()) {}
    PeerId id;
    ShmArea area;
    ShmRingWriter writer;
    ShmRingReader reader;
    std::vector<Posted<std::byte const>> sends;  // that found no room yet, in order
    std::vector<Posted<std::byte>> receives;     // in order
    bool blocked = false;                        // the front of the reader has no receive
    bool broken = false;
  };
  using Peers = std::vector<std::unique_ptr<Peer>>;

  static void spin() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Peers::iterator find(PeerId id) {
    return std::ranges::find_if(peers_, [&](auto const& peer) { return peer->id == id; });
  }

  Peer& known(PeerId id) {
    auto const place = find(id);
    EM_CHECK(place != peers_.end(), "peer " << id << " is unknown or fenced");
    return **place;
  }

  Peer& peer_for_op(PeerId id, MessageTag tag) {
    EM_CHECK(tag.value() <= kMaxTag, "tag " << tag);
    Peer& peer = known(id);
    EM_CHECK(peer.sends.size() + peer.receives.size() < limits_.max_ops_per_peer,
             "more than " << limits_.max_ops_per_peer << " ops of peer " << id);
    return peer;
  }

  void finish(Peer const& peer, OpId op, OpStatus status, std::size_t bytes) {
    done_.push_back({.op = op, .peer = peer.id, .status = status, .bytes = bytes});
  }

  void send(Peer& peer) {
    std::size_t sent = 0;
    for (auto const& posted : peer.sends) {
      if (!peer.writer.write(posted.tag, posted.buffer)) break;
      finish(peer, posted.op, OpStatus::ok, posted.buffer.size());
      ++sent;
    }
    peer.sends.erase(peer.sends.begin(), peer.sends.begin() + static_cast<std::ptrdiff_t>(sent));
  }

  void receive(Peer& peer) {
    peer.blocked = false;
    while (auto const message = peer.reader.front()) {
      auto const posted = std::ranges::find(peer.receives, message->tag, &Posted<std::byte>::tag);
      peer.blocked = posted == peer.receives.end();
      if (peer.blocked) return;
      bool const fits = message->bytes.size() <= posted->buffer.size();
      if (fits && !message->bytes.empty())
        std::memcpy(posted->buffer.data(), message->bytes.data(), message->bytes.size());
      finish(peer, posted->op, fits ? OpStatus::ok : OpStatus::failed, fits ? message->bytes.size() : 0);
      peer.receives.erase(posted);
      peer.reader.take();
    }
  }

  void give_up_if_broken(Peer& peer) {
    if (peer.writer.failure().empty() && peer.reader.failure().empty()) return;
    if (!std::exchange(peer.broken, true))
      spdlog::error("peer {} broke the memory it shares: {}{}", peer.id.value(), peer.writer.failure(),
                    peer.reader.failure());
    finish_all(peer, OpStatus::failed);
  }

  void finish_all(Peer& peer, OpStatus status) {
    for (auto const& posted : peer.sends) finish(peer, posted.op, status, 0);
    for (auto const& posted : peer.receives) finish(peer, posted.op, status, 0);
    peer.sends.clear();
    peer.receives.clear();
  }

  ShmTransportLimits limits_;
  Peers peers_;                                      // but those that were fenced
  std::vector<Completion> done_;                     // finished, not yet reported
  std::vector<std::atomic<std::uint32_t>*> asleep_;  // of wait()
  std::size_t looks_in_vain_ = 0;                    // since the last completion
  std::uint64_t last_op_ = 0;
};

ShmTransport::ShmTransport(ShmTransportLimits limits) : impl_(std::make_unique<Impl>(limits)) {}
ShmTransport::~ShmTransport() = default;

void ShmTransport::add_peer(PeerId peer, ShmArea area) {
  impl_->add_peer(peer, std::move(area));
}

void ShmTransport::register_buffer(std::span<std::byte> /*buffer*/) {}  // any memory of this process will do

OpId ShmTransport::post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) {
  return impl_->post_send(peer, tag, buffer);
}

OpId ShmTransport::post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) {
  return impl_->post_recv(peer, tag, buffer);
}

std::size_t ShmTransport::poll(std::span<Completion> completions) {
  return impl_->poll(completions);
}

void ShmTransport::wait(PollPause pause) {
  impl_->wait(pause);
}

bool ShmTransport::wait_for(PeerId peer) {
  return impl_->wait_for(peer);
}

void ShmTransport::deliver() {
  impl_->deliver();
}

void ShmTransport::fence(PeerId peer) {
  impl_->fence(peer);
}

}  // namespace expertmesh
