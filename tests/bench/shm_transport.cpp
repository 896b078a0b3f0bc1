// Round trips through shared memory between two processes, each on a core of its own, as an exchange with one worker
// has them: one request there, one answer back. Prints time, and bytes a second beside those of memcpy in the same run:
// a message is copied twice, into the ring and out of it.
//
// bench_shm_transport [H] [K], defaults 2048 and 4: hidden size and experts of a token on the worker, rows of bfloat16.
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/cores.h"
#include "common/protocol/dispatch_layout.h"
#include "common/transport/shm_transport.h"

using namespace expertmesh;

namespace {

using Clock = std::chrono::steady_clock;

constexpr PeerId kPeer{0};
constexpr MessageTag kRequest{0};
constexpr MessageTag kAnswer{1};

struct Size {
  std::size_t tokens;
  std::size_t request_bytes;
  std::size_t answer_bytes;
};

void wait_for(Transport& transport, OpId op) {
  std::array<Completion, 4> done;
  for (;;) {
    std::size_t const count = transport.poll(done);
    for (Completion const& completion : std::span(done).first(count))
      if (completion.op == op) return;
    if (count == 0) transport.wait(PollPause::yield);
  }
}

// One answer for each request, of the size that the request says.
[[noreturn]] void serve(std::string const& offer, std::size_t most_bytes) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ShmTransport transport({.max_ops_per_peer = 16});
  transport.add_peer(kPeer, ShmArea::open(offer));
  AlignedBuffer<std::byte> request(most_bytes);
  AlignedBuffer<std::byte> answer(most_bytes);
  for (AlignedBuffer<std::byte>* buffer : {&request, &answer}) touch_pages(buffer->span());
  for (;;) {
    wait_for(transport, transport.post_recv(kPeer, kRequest, request.span()));
    std::size_t bytes = 0;
    std::memcpy(&bytes, request.data(), sizeof bytes);
    transport.post_send(kPeer, kAnswer, answer.span().first(bytes));
  }
}

double median(std::vector<double>& numbers) {
  std::ranges::nth_element(numbers, numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2));
  return numbers[numbers.size() / 2];
}

template <class Work>
double median_seconds(std::size_t rounds, Work const& work) {
  std::vector<double> seconds;
  for (std::size_t i = 0; i < rounds + rounds / 10; ++i) {
    auto const begin = Clock::now();
    work();
    if (i >= rounds / 10) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return median(seconds);
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t const hidden = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 2048;
  std::size_t const experts = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 4;
  DispatchLayout const layout(hidden, DType::bf16);
  std::vector<Size> sizes;
  for (std::size_t const tokens : {1, 4, 16, 64, 256, 1024})
    sizes.push_back({.tokens = tokens,
                     .request_bytes = layout.request_bytes(tokens, tokens * experts),
                     .answer_bytes = layout.answer_bytes(tokens * experts)});
  std::size_t const most = std::max(sizes.back().request_bytes, sizes.back().answer_bytes);
  ShmRingShape const ring{.num_slots = 4, .slot_bytes = most};
  ShmArea area = ShmArea::make({.to_worker = ring, .to_coordinator = ring});

  std::vector<int> const cores = allowed_cores();
  std::string const offer = area.offer();
  pid_t const child = ::fork();
  if (child == 0) {
    if (cores.size() > 1) restrict_to_cores({cores[1]});
    serve(offer, most);
  }
  restrict_to_cores({cores[0]});
  std::printf("%zu cores; H %zu, %zu experts of a token, bfloat16; %zu bytes mapped\n", cores.size(), hidden, experts,
              area.size());
  ShmTransport transport({.max_ops_per_peer = 16});
  transport.add_peer(kPeer, std::move(area));
  AlignedBuffer<std::byte> request(most);
  AlignedBuffer<std::byte> answer(most);
  AlignedBuffer<std::byte> other(most);
  for (AlignedBuffer<std::byte>* buffer : {&request, &answer, &other}) touch_pages(buffer->span());
  std::printf("%7s %10s %10s %14s %12s %14s %10s\n", "tokens", "request B", "answer B", "round trip us", "GB/s",
              "2 memcpy us", "share");
  for (Size const& size : sizes) {
    std::memcpy(request.data(), &size.answer_bytes, sizeof size.answer_bytes);
    std::size_t const bytes = size.request_bytes + size.answer_bytes;
    std::size_t const rounds = std::clamp<std::size_t>((std::size_t{2} << 30) / bytes, 50, 20000);
    double const seconds = median_seconds(rounds, [&] {
      OpId const received = transport.post_recv(kPeer, kAnswer, answer.span());
      transport.post_send(kPeer, kRequest, request.span().first(size.request_bytes));
      wait_for(transport, received);
    });
    // Twice both messages, from memory of this process to other memory of it.
    double const copies = median_seconds(rounds, [&] {
      for (int twice = 0; twice < 2; ++twice) {
        std::memcpy(other.data(), request.data(), size.request_bytes);
        std::memcpy(other.data(), answer.data(), size.answer_bytes);
        asm volatile("" : : "r"(other.data()) : "memory");
      }
    });
    std::printf("%7zu %10zu %10zu %14.2f %12.2f %14.2f %9.0f%%\n", size.tokens, size.request_bytes, size.answer_bytes,
                seconds * 1e6, static_cast<double>(bytes) / seconds / 1e9, copies * 1e6, 100 * copies / seconds);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}
