#include "coordinator/shutdown_signal.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/base/error.h"

namespace expertmesh {
namespace {

// What a signal handler may touch.
int event_for_handler = -1;
volatile sig_atomic_t signals_seen = 0;

void on_signal(int number) {
  int const saved = errno;
  signals_seen = signals_seen + 1;
  if (signals_seen > 1) _exit(128 + number);
  std::uint64_t const one = 1;
  [[maybe_unused]] ssize_t const written = write(event_for_handler, &one, sizeof one);
  errno = saved;
}

}  // namespace

ShutdownSignal::ShutdownSignal() : event_(eventfd(0, EFD_CLOEXEC)) {
  if (event_ < 0) throw OutsideError("eventfd", errno, std::strerror(errno), "");
  event_for_handler = event_;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a client that goes away is an error code, not a signal
}

void ShutdownSignal::raise() const {
  std::uint64_t const one = 1;
  [[maybe_unused]] ssize_t const written = write(event_, &one, sizeof one);
}

void ShutdownSignal::wait() const {
  std::uint64_t count = 0;
  while (read(event_, &count, sizeof count) < 0 && errno == EINTR) {
  }
}

}  // namespace expertmesh
