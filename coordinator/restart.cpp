#include "coordinator/restart.h"

#include <fcntl.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill() is POSIX
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/base/paths.h"

extern char** environ;

namespace expertmesh {
namespace {

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// What the launcher makes for each run of its own.
bool belongs_to_a_run(std::string const& variable) {
  return variable.starts_with("OMPI_MCA_orte_tmpdir_base=") || variable.starts_with("OMPI_MCA_pmix_server_uri=");
}

}  // namespace

Restart::Restart(int argc, char** argv) : arguments_(argv, argv + argc) {
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (!belongs_to_a_run(*variable)) environment_.emplace_back(*variable);
}

void Restart::listen_at(std::uint16_t port) {
  for (std::size_t i = 1; i < arguments_.size(); ++i) {
    if (arguments_[i] == "--port=0") arguments_[i] = "--port=" + std::to_string(port);
    if (arguments_[i] == "0" && arguments_[i - 1] == "--port") arguments_[i] = std::to_string(port);
  }
}

void Restart::run() const {
  // Open MPI's daemon and name server would stay, since this process does.
  for (auto const& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    for (pid_t pid = 0; children >> pid;) ::kill(pid, SIGKILL);
  }
  for (auto const& file : std::filesystem::directory_iterator("/proc/self/fd"))
    if (int const fd = std::stoi(file.path().filename()); fd > STDERR_FILENO) fcntl(fd, F_SETFD, FD_CLOEXEC);
  std::vector<std::string> arguments = arguments_;
  arguments[0] = (executable_dir() / "expertmesh").string();
  std::vector<std::string> environment = environment_;
  execve(arguments[0].c_str(), pointers_to(arguments).data(), pointers_to(environment).data());
}

}  // namespace expertmesh
