#include "coordinator/text/renderer_process.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#include "common/base/error.h"

extern char** environ;

namespace expertmesh {
namespace {

constexpr std::chrono::seconds kStartDeadline{30};
constexpr std::size_t kMaxAnswerBytes = std::size_t{256} << 20;

// Of this process's environment what Python and its clock need: the rest, keys too, is nothing to a template.
std::vector<char*> child_environment() {
  std::vector<char*> kept;
  for (char** entry = environ; *entry; ++entry) {
    std::string_view const name = std::string_view(*entry).substr(0, std::string_view(*entry).find('='));
    if (name.starts_with("PYTHON") || name.starts_with("LC_") ||
        std::ranges::count(std::array{"PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}, name) > 0)
      kept.push_back(*entry);
  }
  kept.push_back(nullptr);
  return kept;
}

}  // namespace

RendererProcess::RendererProcess(std::string const& python, std::filesystem::path const& script) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    throw OutsideError("socketpair", errno, std::strerror(errno), script.string());
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string program = python;
  std::string path = script.string();
  std::array<char*, 3> arguments{program.data(), path.data(), nullptr};
  int const result =
      posix_spawnp(&pid_, program.c_str(), &actions, nullptr, arguments.data(), child_environment().data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  socket_ = ends[0];
  if (result != 0) {
    pid_ = -1;
    close(socket_);
    throw OutsideError("posix_spawn", result, std::strerror(result), python);
  }
  if (!receive(Clock::now() + kStartDeadline)) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(socket_);
    throw OutsideError("start", 0, "the chat template renderer did not come up (does this Python have jinja2?)",
                       python);
  }
}

RendererProcess::~RendererProcess() {
  close(socket_);
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

bool RendererProcess::wait_for(short events, Clock::time_point deadline) const {
  for (;;) {
    auto const left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry{.fd = socket_, .events = events, .revents = 0};
    int const ready = poll(&entry, 1, static_cast<int>(left));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

bool RendererProcess::send(std::string const& message, Clock::time_point deadline) {
  auto const size = static_cast<std::uint32_t>(message.size());
  std::string frame;
  for (int i = 0; i < 4; ++i) frame += static_cast<char>(size >> (8 * i) & 0xff);
  frame += message;
  for (std::size_t sent = 0; sent < frame.size();) {
    if (!wait_for(POLLOUT, deadline)) return false;
    ssize_t const n = ::send(socket_, frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0)
      sent += static_cast<std::size_t>(n);
    else if (errno != EAGAIN && errno != EINTR)
      return false;
  }
  return true;
}

bool RendererProcess::receive_exactly(char* data, std::size_t size, Clock::time_point deadline) {
  for (std::size_t received = 0; received < size;) {
    if (!wait_for(POLLIN, deadline)) return false;
    ssize_t const n = recv(socket_, data + received, size - received, MSG_DONTWAIT);
    if (n > 0)
      received += static_cast<std::size_t>(n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
      return false;
  }
  return true;
}

std::optional<std::string> RendererProcess::receive(Clock::time_point deadline) {
  std::array<unsigned char, 4> head{};
  if (!receive_exactly(reinterpret_cast<char*>(head.data()), head.size(), deadline)) return std::nullopt;
  std::size_t size = 0;
  for (std::size_t i = 0; i < head.size(); ++i) size |= static_cast<std::size_t>(head[i]) << (8 * i);
  if (size > kMaxAnswerBytes) return std::nullopt;
  std::string message(size, '\0');
  if (!receive_exactly(message.data(), size, deadline)) return std::nullopt;
  return message;
}

std::optional<std::string> RendererProcess::ask(std::string const& message, std::chrono::milliseconds deadline) {
  auto const until = Clock::now() + deadline;
  if (!send(message, until)) return std::nullopt;
  return receive(until);
}

}  // namespace expertmesh
