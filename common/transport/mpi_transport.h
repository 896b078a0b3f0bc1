// Transport over MPI: one intercommunicator per peer, non-blocking calls and polling only. The same class serves the
// coordinator (peers: its workers) and a worker (peer: its parent).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "common/transport/mpi_runtime.h"
#include "common/transport/transport.h"

namespace expertmesh {

struct MpiTransportLimits {
  std::size_t max_ops = 1024;  // posted and not yet reported, those in quarantine included
};

// One thread at a time. Nothing is allocated after construction but by add_peer.
class MpiTransport final : public Transport {
 public:
  // init_mpi() comes first.
  explicit MpiTransport(MpiTransportLimits limits);
  ~MpiTransport() override;

  // Takes the intercommunicator over. A PeerId is given once: a worker's next incarnation is another peer.
  void add_peer(PeerId peer, MpiComm comm);

  [[nodiscard]] std::string_view name() const override { return "mpi"; }
  void register_buffer(std::span<std::byte> buffer) override;
  // Messages of at most INT_MAX bytes (a broken invariant otherwise). An error of the library is reported as a
  // completion with OpStatus::failed, never thrown. An answer longer than its buffer fails.
  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override;
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override;
  std::size_t poll(std::span<Completion> completions) override;
  void fence(PeerId peer) override;
  [[nodiscard]] std::size_t quarantined_bytes() const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
