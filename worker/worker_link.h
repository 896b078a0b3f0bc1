// The worker's end of a RowLink: rows of requests come by it, answers go by it, in the order of the requests.
#pragma once
#include <memory>

#include "common/base/aligned_buffer.h"
#include "common/experts/row_port.h"
#include "common/kernels/device.h"
#include "common/transport/row_link.h"

namespace expertmesh {

class WorkerLink final : public RowPort {
 public:
  // Room for the rows of the largest request or layer of a step, and for the largest answer. The device must outlive
  // it.
  WorkerLink(std::shared_ptr<RowLink> link, Device& device, std::size_t most_row_bytes, std::size_t most_answer_bytes);

  // Moves it along. Throws WorkerLoopError when it has failed after it was ready; before that nobody has used it.
  void poll();

  // Throw WorkerLoopError when the link has failed.
  std::byte const* receive(std::size_t bytes) override;
  std::byte* room() override;
  void send(std::size_t bytes) override;
  void hold_device() override { link_->hold_device(); }
  void launched() override { link_->launched(); }
  [[nodiscard]] std::size_t under_way() const override { return link_->under_way(); }

 private:
  void poll_until_enqueued();

  // One of each: an answer leaves before the next rows come, whatever of it the host has seen.
  AlignedBuffer<std::byte> rows_;
  AlignedBuffer<std::byte> answer_;
  std::shared_ptr<RowLink> const link_;  // goes first: until then it may touch the two
  bool was_ready_ = false;
};

}  // namespace expertmesh
