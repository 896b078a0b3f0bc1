#include "common/transport/mpi_transport.h"

#include <mpi.h>

#include <climits>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "common/base/check.h"
#include "common/transport/mpi_check.h"

namespace expertmesh {

class MpiTransport::Impl {
 public:
  explicit Impl(MpiTransportLimits limits) : max_ops_(limits.max_ops) {
    ops_.reserve(max_ops_);
    int* max_tag = nullptr;
    int known = 0;
    mpi_check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&max_tag), &known), "MPI_Comm_get_attr");
    EM_CHECK(known != 0 && static_cast<std::uint32_t>(*max_tag) >= kMaxTag, "MPI_TAG_UB is too small for kMaxTag");
  }

  void add_peer(PeerId id, MPI_Comm comm) {
    bool const is_new = peers_.try_emplace(id, Peer{.id = id, .comm = comm}).second;
    EM_CHECK(is_new, "peer " << id << " is there already");
  }

  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) {
    Op& op = new_op(peer, tag, buffer.size(), OpKind::send);
    op.code = MPI_Isend(buffer.data(), static_cast<int>(buffer.size()), MPI_BYTE, kRemoteRank,
                        static_cast<int>(tag.value()), op.peer->comm, &op.request);
    return op.id;
  }

  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) {
    Op& op = new_op(peer, tag, buffer.size(), OpKind::receive);
    op.code = MPI_Irecv(buffer.data(), static_cast<int>(buffer.size()), MPI_BYTE, kRemoteRank,
                        static_cast<int>(tag.value()), op.peer->comm, &op.request);
    return op.id;
  }

  // Tests op by op. MPI_Testsome would be one call, but once any op of its array has failed, Open MPI 4.1 also frees
  // those whose recycled request object still carries an older op's error, though they are under way.
  std::size_t poll(std::span<Completion> completions) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < ops_.size() && count < completions.size();) {
      Op& op = ops_[i];
      int done = 1;
      MPI_Status status;
      if (op.code == MPI_SUCCESS) op.code = MPI_Test(&op.request, &done, &status);
      if (op.code == MPI_SUCCESS && done == 0) {
        ++i;
        continue;
      }
      completions[count++] = completion_of(op, status);
      op = ops_.back();
      ops_.pop_back();
    }
    return count;
  }

  void fence(PeerId id) {
    Peer& peer = serving_peer(id);
    // The communicator is never freed: Open MPI would give its context id to a later one, and what a peer that was only
    // slow still sends would match there.
    peer.fenced = true;
    for (Op& op : ops_) {
      if (op.peer != &peer) continue;
      quarantined_bytes_ += op.bytes;
      if (op.kind == OpKind::receive && op.code == MPI_SUCCESS) mpi_check(MPI_Cancel(&op.request), "MPI_Cancel");
    }
  }

  [[nodiscard]] std::size_t quarantined_bytes() const { return quarantined_bytes_; }

 private:
  static constexpr int kRemoteRank = 0;  // of a group of one

  struct Peer {
    PeerId id;
    MPI_Comm comm = MPI_COMM_NULL;
    bool fenced = false;
  };

  enum class OpKind : std::uint8_t { send, receive };
  struct Op {
    OpId id;
    OpKind kind = OpKind::send;
    Peer* peer = nullptr;
    std::size_t bytes = 0;  // of its buffer
    MPI_Request request = MPI_REQUEST_NULL;
    int code = MPI_SUCCESS;  // of the last MPI call about it
  };

  Peer& serving_peer(PeerId id) {
    auto const found = peers_.find(id);
    EM_CHECK(found != peers_.end() && !found->second.fenced, "peer " << id << " is unknown or fenced");
    return found->second;
  }

  Op& new_op(PeerId peer, MessageTag tag, std::size_t bytes, OpKind kind) {
    EM_CHECK(bytes <= INT_MAX, "message of " << bytes << " bytes");
    EM_CHECK(tag.value() <= kMaxTag, "tag " << tag);
    EM_CHECK(ops_.size() < max_ops_, "more than " << max_ops_ << " ops in flight");
    ops_.push_back({.id = OpId(++last_op_), .kind = kind, .peer = &serving_peer(peer), .bytes = bytes});
    return ops_.back();
  }

  Completion completion_of(Op const& op, MPI_Status const& status) {
    Completion done{.op = op.id, .peer = op.peer->id};
    if (op.peer->fenced) {
      quarantined_bytes_ -= op.bytes;
      done.status = OpStatus::cancelled;
    } else if (op.code != MPI_SUCCESS) {
      done.status = OpStatus::failed;
    } else if (op.kind == OpKind::send) {
      done.bytes = op.bytes;
    } else {
      int received = 0;
      mpi_check(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
      done.bytes = static_cast<std::size_t>(received);
    }
    return done;
  }

  std::size_t max_ops_;
  std::unordered_map<PeerId, Peer> peers_;  // its nodes do not move
  std::vector<Op> ops_;                     // posted and not yet reported, in no order
  std::uint64_t last_op_ = 0;
  std::size_t quarantined_bytes_ = 0;
};

MpiTransport::MpiTransport(MpiTransportLimits limits) : impl_(std::make_unique<Impl>(limits)) {}
MpiTransport::~MpiTransport() = default;

void MpiTransport::add_peer(PeerId peer, MpiComm comm) {
  impl_->add_peer(peer, comm);
}

void MpiTransport::register_buffer(std::span<std::byte> /*buffer*/) {}  // MPI pins what it needs as it goes

OpId MpiTransport::post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) {
  return impl_->post_send(peer, tag, buffer);
}

OpId MpiTransport::post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) {
  return impl_->post_recv(peer, tag, buffer);
}

std::size_t MpiTransport::poll(std::span<Completion> completions) {
  return impl_->poll(completions);
}

void MpiTransport::fence(PeerId peer) {
  impl_->fence(peer);
}

std::size_t MpiTransport::quarantined_bytes() const {
  return impl_->quarantined_bytes();
}

}  // namespace expertmesh
