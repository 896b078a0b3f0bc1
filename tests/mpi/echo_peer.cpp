// The worker process of the transport tests: by MPI, or through the memory that its argument offers. First message to
// the parent, with tag 1: its process id.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/transport/mpi_runtime.h"
#include "common/transport/mpi_transport.h"
#include "common/transport/shm_transport.h"
#include "tests/mpi/echo_protocol.h"

namespace expertmesh {
namespace {

constexpr PeerId kParent{0};

class EchoPeer {
 public:
  explicit EchoPeer(std::unique_ptr<Transport> transport) : owned_(std::move(transport)) {}

  [[noreturn]] void serve() {
    std::int64_t const pid = ::getpid();
    auto const bytes = std::as_bytes(std::span(&pid, 1));
    send(MessageTag(1), {bytes.begin(), bytes.end()});
    for (;;) {
      auto const request = receive();
      auto const header = echo::header_of(request);
      std::vector<std::byte> reply(request.size() - sizeof header);
      echo::answer(request, reply);
      MessageTag const tag(header.answer_tag);
      if (header.command == echo::Command::hold) {
        held_.emplace_back(tag, std::move(reply));
        continue;
      }
      while (header.command == echo::Command::release && !held_.empty()) {
        send(held_.back().first, std::move(held_.back().second));
        held_.pop_back();
      }
      send(tag, std::move(reply));
      while (header.command == echo::Command::flood) {
        send(MessageTag(kMaxTag), std::vector<std::byte>(std::size_t{64} << 10));
        while (sending_.size() > 8) poll();
      }
      if (header.command == echo::Command::answer_and_exit) {
        while (!sending_.empty()) poll();
        _exit(0);
      }
    }
  }

 private:
  void send(MessageTag tag, std::vector<std::byte> message) {
    OpId const op = transport_.post_send(kParent, tag, message);
    sending_.emplace(op, std::move(message));  // its bytes do not move
  }

  std::span<std::byte const> receive() {
    received_ = false;
    receive_op_ = transport_.post_recv(kParent, echo::kRequestTag, request_);
    while (!received_) poll();
    return std::span(request_).first(request_bytes_);
  }

  void poll() {
    std::array<Completion, 4> done;
    std::size_t const count = transport_.poll(done);
    if (count == 0) transport_.wait(PollPause::yield);
    for (Completion const& completion : std::span(done).first(count)) {
      EM_CHECK(completion.status == OpStatus::ok, "op " << completion.op << " failed");
      if (completion.op == receive_op_) {
        received_ = true;
        request_bytes_ = completion.bytes;
      } else {
        sending_.erase(completion.op);
      }
    }
  }

  std::unique_ptr<Transport> const owned_;
  Transport& transport_ = *owned_;
  std::vector<std::byte> request_ = std::vector<std::byte>(echo::kMaxPayload + sizeof(echo::Header));
  std::size_t request_bytes_ = 0;
  OpId receive_op_;
  bool received_ = false;
  std::map<OpId, std::vector<std::byte>> sending_;
  std::vector<std::pair<MessageTag, std::vector<std::byte>>> held_;
};

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  using namespace expertmesh;
  if (argc > 1) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // the tests' end is its own
    ShmArea area = ShmArea::open(argv[1]);
    area.accept();
    auto shm = std::make_unique<ShmTransport>(ShmTransportLimits());
    shm->add_peer(kParent, std::move(area));
    EchoPeer(std::move(shm)).serve();
  }
  init_mpi();
  auto mpi = std::make_unique<MpiTransport>(MpiTransportLimits{.max_ops = 256});
  mpi->add_peer(kParent, parent_comm());
  EchoPeer(std::move(mpi)).serve();
}
