// One transport of several: each peer belongs to one of them.
#pragma once
#include <cstddef>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/transport/transport.h"

namespace expertmesh {

// One thread at a time. Nothing is allocated after construction but by add_peer, and by what the parts allocate.
class MixedTransport final : public Transport {
 public:
  // The parts must outlive it. Their ops are reported here alone, with ids of this transport.
  explicit MixedTransport(std::vector<Transport*> parts);

  // A peer that the part has. A PeerId is given once.
  void add_peer(PeerId peer, std::size_t part);

  [[nodiscard]] std::string_view name() const override { return "mixed"; }
  void register_buffer(std::span<std::byte> buffer) override;  // with every part
  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override;
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override;
  std::size_t poll(std::span<Completion> completions) override;
  // As the one part that has ops; if there are several, none of which sees the others' messages, as any.
  void wait(PollPause pause) override;
  bool wait_for(PeerId peer) override;
  void deliver() override;
  void fence(PeerId peer) override;
  [[nodiscard]] std::size_t quarantined_bytes() const override;

 private:
  struct Part {
    Transport* transport = nullptr;
    std::size_t num_ops = 0;  // posted, not yet reported
  };
  std::size_t part_of(PeerId peer) const;
  OpId posted(std::size_t part, OpId op);

  std::vector<Part> parts_;
  std::unordered_map<PeerId, std::size_t> part_of_;
  std::size_t first_ = 0;  // to be polled next: none starves
};

}  // namespace expertmesh
