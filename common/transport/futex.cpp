#include "common/transport/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <ctime>

#include "common/base/cores.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMostWords = 128;  // FUTEX_WAITV_MAX
constexpr std::uint32_t kAwaited = 1;

// As in linux/futex.h of Linux 5.16, which the build's headers may be older than.
constexpr long kFutexWaitv = 449;
struct Waiter {
  std::uint64_t value = kAwaited;
  std::uint64_t address = 0;
  std::uint32_t flags = 2;  // of 32 bits, and not private to this process
  std::uint32_t reserved = 0;
};

timespec in_timespec(std::chrono::nanoseconds time) {
  return {.tv_sec = static_cast<time_t>(time.count() / 1'000'000'000),
          .tv_nsec = static_cast<long>(time.count() % 1'000'000'000)};
}

}  // namespace

void futex_wait_for_any(std::span<std::atomic<std::uint32_t>* const> words, std::chrono::nanoseconds most) {
  if (words.size() == 1) {
    timespec const time = in_timespec(most);
    ::syscall(SYS_futex, words.front(), FUTEX_WAIT, kAwaited, &time, nullptr, 0);
    return;
  }
  std::array<Waiter, kMostWords> waiters;
  std::size_t const count = std::min(words.size(), kMostWords);
  for (std::size_t i = 0; i < count; ++i) {
    waiters[i] = Waiter();
    waiters[i].address = reinterpret_cast<std::uint64_t>(words[i]);
  }
  timespec const end = in_timespec(std::chrono::steady_clock::now().time_since_epoch() + most);
  if (::syscall(kFutexWaitv, waiters.data(), static_cast<unsigned>(count), 0U, &end, CLOCK_MONOTONIC) >= 0) return;
  if (errno != EAGAIN && errno != ETIMEDOUT && errno != EINTR) pause_polling(PollPause::sleep);
}

void futex_wake(std::atomic<std::uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace expertmesh
