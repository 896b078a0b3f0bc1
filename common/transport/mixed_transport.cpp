#include "common/transport/mixed_transport.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

MixedTransport::MixedTransport(std::vector<Transport*> parts) {
  EM_CHECK(!parts.empty(), "no parts");
  for (Transport* const part : parts) parts_.push_back({.transport = part});
}

void MixedTransport::add_peer(PeerId peer, std::size_t part) {
  EM_CHECK(part < parts_.size(), "part " << part << " of " << parts_.size());
  EM_CHECK(part_of_.emplace(peer, part).second, "peer " << peer << " is there already");
}

std::size_t MixedTransport::part_of(PeerId peer) const {
  auto const found = part_of_.find(peer);
  EM_CHECK(found != part_of_.end(), "peer " << peer << " is unknown");
  return found->second;
}

// Ids of the parts overlap: the n-th op of part p is op n * parts + p here.
OpId MixedTransport::posted(std::size_t part, OpId op) {
  ++parts_[part].num_ops;
  return OpId(op.value() * parts_.size() + part);
}

void MixedTransport::register_buffer(std::span<std::byte> buffer) {
  for (Part const& part : parts_) part.transport->register_buffer(buffer);
}

OpId MixedTransport::post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) {
  std::size_t const part = part_of(peer);
  return posted(part, parts_[part].transport->post_send(peer, tag, buffer));
}

OpId MixedTransport::post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) {
  std::size_t const part = part_of(peer);
  return posted(part, parts_[part].transport->post_recv(peer, tag, buffer));
}

std::size_t MixedTransport::poll(std::span<Completion> completions) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    std::size_t const part = (first_ + i) % parts_.size();
    auto const room = completions.subspan(count);
    std::size_t const found = parts_[part].transport->poll(room);
    for (Completion& completion : room.first(found)) completion.op = OpId(completion.op.value() * parts_.size() + part);
    parts_[part].num_ops -= found;
    count += found;
  }
  first_ = (first_ + 1) % parts_.size();
  return count;
}

void MixedTransport::wait(PollPause pause) {
  auto const busy = std::ranges::find_if(parts_, [](Part const& part) { return part.num_ops > 0; });
  bool const alone = busy != parts_.end() && std::find_if(busy + 1, parts_.end(), [](Part const& part) {
                                               return part.num_ops > 0;
                                             }) == parts_.end();
  deliver();
  if (alone)
    busy->transport->wait(pause);
  else
    pause_polling(pause);
}

bool MixedTransport::wait_for(PeerId peer) {
  return parts_[part_of(peer)].transport->wait_for(peer);
}

void MixedTransport::deliver() {
  for (Part const& part : parts_) part.transport->deliver();
}

void MixedTransport::fence(PeerId peer) {
  parts_[part_of(peer)].transport->fence(peer);
}

std::size_t MixedTransport::quarantined_bytes() const {
  std::size_t bytes = 0;
  for (Part const& part : parts_) bytes += part.transport->quarantined_bytes();
  return bytes;
}

}  // namespace expertmesh
