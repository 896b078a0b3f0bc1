// Transport to processes of this host through memory that both have mapped: a message is copied into the ring of its
// direction, and out of it where its receive wants it. A peer that dies spoils its own rings only.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "common/transport/shm_area.h"
#include "common/transport/transport.h"

namespace expertmesh {

struct ShmTransportLimits {
  std::size_t max_ops_per_peer = 256;  // posted and not yet finished
};

// One thread at a time. Nothing is allocated after construction but by add_peer. Messages of a peer are taken in the
// order in which it sent them: one that no receive waits for keeps those behind it back. A message longer than its
// receive's buffer fails that receive alone; a peer that broke a ring fails all of its ops, those of later posts too.
class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(ShmTransportLimits limits);
  ~ShmTransport() override;

  // A PeerId is given once.
  void add_peer(PeerId peer, ShmArea area);

  [[nodiscard]] std::string_view name() const override { return "shm"; }
  void register_buffer(std::span<std::byte> buffer) override;
  // Messages of at most the area's max_message_bytes() (a broken invariant otherwise).
  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override;
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override;
  std::size_t poll(std::span<Completion> completions) override;
  void wait(PollPause pause) override;
  bool wait_for(PeerId peer) override;
  void deliver() override;
  // The peer's memory goes with it.
  void fence(PeerId peer) override;
  [[nodiscard]] std::size_t quarantined_bytes() const override { return 0; }

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
