// A worker that ends at a point of its life that worker id and incarnation choose: lives of odd incarnation serve a few
// requests and then fail in one of kServingFaults, those between die on the way there in one of kStartFaults.
#include <mpi.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/protocol/dispatch_layout.h"
#include "tests/mpi/mortal_faults.h"
#include "worker/worker.h"

namespace expertmesh {
namespace {

constexpr int kRequestsBefore = 3;

[[noreturn]] void die(int way) {
  switch (way % 5) {
    case 0:
      ::kill(getpid(), SIGKILL);
      break;
    case 1:
      ::kill(getpid(), SIGSEGV);
      break;
    case 2:
      _exit(0);
    case 3:
      MPI_Abort(MPI_COMM_SELF, 3);
      break;
    default: {  // more memory than it may have
      rlimit const limit{.rlim_cur = 1, .rlim_max = 1};
      setrlimit(RLIMIT_AS, &limit);
      ::operator delete(::operator new (std::size_t{1} << 30));
    }
  }
  for (;;) pause();
}

// Passes everything on, until the fault.
class MortalTransport final : public Transport {
 public:
  MortalTransport(Transport& real, ServingFault fault, int way) : real_(real), fault_(fault), way_(way) {}
  [[nodiscard]] std::string_view name() const override { return real_.name(); }
  void register_buffer(std::span<std::byte> buffer) override { real_.register_buffer(buffer); }
  void wait(PollPause pause) override { real_.wait(pause); }
  bool wait_for(PeerId peer) override { return real_.wait_for(peer); }
  void deliver() override { real_.deliver(); }
  void fence(PeerId peer) override { real_.fence(peer); }
  [[nodiscard]] std::size_t quarantined_bytes() const override { return real_.quarantined_bytes(); }
  OpId post_recv(PeerId peer, MessageTag tag, std::span<std::byte> buffer) override {
    return real_.post_recv(peer, tag, buffer);
  }

  OpId post_send(PeerId peer, MessageTag tag, std::span<std::byte const> buffer) override {
    if (++requests_ < kRequestsBefore) return real_.post_send(peer, tag, buffer);
    // A buffer of its own that lives as long as the process: MPI may still read it.
    static AlignedBuffer<std::byte> changed;
    changed = AlignedBuffer<std::byte>(2 * buffer.size() + 64);
    std::memcpy(changed.data(), buffer.data(), buffer.size());
    auto const send = [&](std::size_t bytes) {
      return real_.post_send(peer, tag, std::span<std::byte const>(changed.span()).first(bytes));
    };
    AnswerHeader header;
    std::memcpy(&header, changed.data(), sizeof header);
    auto const rewrite = [&] { std::memcpy(changed.data(), &header, sizeof header); };
    switch (fault_) {
      case ServingFault::after_compute:
        die(way_);
      case ServingFault::while_sending:
        send(buffer.size());
        die(way_);
      case ServingFault::header_only:
        send(sizeof header);
        die(way_);
      case ServingFault::short_answer:
        return send(buffer.size() - 1);
      case ServingFault::long_answer:
        return send(buffer.size() + 1);
      case ServingFault::wrong_epoch:
        ++header.id.placement_epoch;
        rewrite();
        return send(buffer.size());
      case ServingFault::wrong_magic:
        header.magic = 0;
        rewrite();
        return send(buffer.size());
      case ServingFault::not_a_number: {
        float const nan = std::numeric_limits<float>::quiet_NaN();
        for (std::size_t at = buffer.size() - sizeof nan; at >= sizeof header + 64; at -= sizeof nan)
          std::memcpy(changed.data() + at, &nan, sizeof nan);
        return send(buffer.size());
      }
      case ServingFault::stopped:
        ::kill(getpid(), SIGSTOP);
        return send(buffer.size());
      case ServingFault::after_request:
      case ServingFault::after_answer:
        break;
    }
    answering_ = send(buffer.size());
    return answering_;
  }

  std::size_t poll(std::span<Completion> completions) override {
    std::size_t const count = real_.poll(completions);
    for (Completion const& done : completions.first(count)) {
      if (fault_ == ServingFault::after_request && requests_ == kRequestsBefore) die(way_);
      if (fault_ == ServingFault::after_answer && done.op == answering_) die(way_);
    }
    return count;
  }

 private:
  Transport& real_;
  ServingFault const fault_;
  int const way_;
  int requests_ = 0;
  OpId answering_{};
};

WorkerHooks hooks_for(WorkerOptions const& options) {
  int const life = static_cast<int>(options.incarnation);
  if (life % 2 == 1) {
    auto const [fault, way] = serving_fault(options.worker_id, options.incarnation);
    return {.started = {}, .connected = {}, .assigned = {}, .wrap = [fault = fault, way = way](Transport& real) {
              return std::make_unique<MortalTransport>(real, fault, way);
            }};
  }
  // Before MPI_Init there is no MPI_Abort.
  auto const end = [] { ::kill(getpid(), SIGKILL); };
  switch (start_fault(options.worker_id, options.incarnation)) {
    case StartFault::before_hello:
      return {.started = end, .connected = {}, .assigned = {}, .wrap = {}};
    case StartFault::before_mpi:
      return {.started = {}, .connected = end, .assigned = {}, .wrap = {}};
    case StartFault::while_loading:
      break;
  }
  return {.started = {}, .connected = {}, .assigned = [end](control::Assign&) { end(); }, .wrap = {}};
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  return expertmesh::worker_main(argc, argv, expertmesh::hooks_for);
}
