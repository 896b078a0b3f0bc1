// Moves bytes between this process and its peers. One interface, several implementations (in-process, MPI, shared
// memory), one contract test. Nothing here blocks: completions are polled.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "common/base/cores.h"
#include "common/base/strong_id.h"

namespace expertmesh {

using PeerId = StrongId<struct PeerIdTag>;
using OpId = StrongId<struct OpIdTag, std::uint64_t>;
// Matches a send with a receive. 0…kMaxTag; a tag of a fenced attempt is not used again for the same peer.
using MessageTag = StrongId<struct MessageTagTag>;
constexpr std::uint32_t kMaxTag = (1U << 22) - 1;

enum class OpStatus : std::uint8_t {
  ok,         // sent: the buffer may be reused; received: `bytes` are there
  cancelled,  // the peer was fenced before the op completed; its buffer may be reused
  failed,     // the library reported an error for this peer; the caller fences it
};

struct Completion {
  OpId op;
  PeerId peer;
  OpStatus status = OpStatus::ok;
  std::size_t bytes = 0;  // received, or sent
};

class Transport {
 public:
  virtual ~Transport() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;  // "in-process", "mpi", "shm"

  // Makes memory known before it is used in a post (pinned or mapped where that helps). It must outlive the transport.
  virtual void register_buffer(std::span<std::byte> buffer) = 0;

  // Starts a send or a receive of at most buffer.size() bytes. The buffer is the transport's until the op completes.
  virtual OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) = 0;
  virtual OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) = 0;

  // Moves things along and reports finished ops, at most completions.size(); returns how many. Never blocks.
  virtual std::size_t poll(std::span<Completion> completions) = 0;

  // Between two polls that found nothing: a moment, that a message may cut short; at most a millisecond or so.
  virtual void wait(PollPause pause) { pause_polling(pause); }
  // As wait(PollPause::sleep), for what one peer sends; whether something of it is there. Several threads at once may
  // be in it, while none is in another member.
  virtual bool wait_for(PeerId /*peer*/) {
    pause_polling(PollPause::sleep);
    return true;
  }
  // Peers that sleep are told of what was sent to them. wait() tells all of them, wait_for() its own peer: who is going
  // to sleep on the core that a peer wakes up on does so last.
  virtual void deliver() {}

  // Cuts the peer off: its unfinished ops end as cancelled (reported by the next polls), later posts to it are a broken
  // invariant. An op whose buffer the library cannot give back (a send, or a receive that was half done) is held in
  // quarantine and does not complete until it can.
  virtual void fence(PeerId peer) = 0;
  // Bytes of the buffers of fenced peers' ops that the library still holds.
  [[nodiscard]] virtual std::size_t quarantined_bytes() const = 0;
};

}  // namespace expertmesh
