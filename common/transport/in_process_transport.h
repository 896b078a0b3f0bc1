// Transport to peers that are a function of this process: poll() runs it in place, on the caller's thread, reading the
// request and writing the reply where they lie.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "common/transport/transport.h"

namespace expertmesh {

// Answers one request of this peer: writes the reply and returns its length in bytes, at most reply.size().
using InProcessHandler =
    std::function<std::size_t(PeerId peer, std::span<std::byte const> request, std::span<std::byte> reply)>;

struct InProcessTransportLimits {
  std::size_t max_peers = 1;           // ids 0…max_peers-1
  std::size_t max_ops_per_peer = 256;  // posted and not yet reported
};

// One thread at a time. Messages are not parsed, so requests and replies pair by order: the n-th send to a peer (always
// with tag 0) is answered into the n-th receive posted for it. Both must be posted; either may come first.
class InProcessTransport final : public Transport {
 public:
  InProcessTransport(InProcessTransportLimits limits, InProcessHandler handler);
  ~InProcessTransport() override;

  [[nodiscard]] std::string_view name() const override { return "in-process"; }
  void register_buffer(std::span<std::byte> buffer) override;
  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override;
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override;
  std::size_t poll(std::span<Completion> completions) override;
  void fence(PeerId peer) override;
  [[nodiscard]] std::size_t quarantined_bytes() const override { return 0; }

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
