#include "coordinator/bench/config_directory.h"

#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/base/error.h"

namespace expertmesh {
namespace {

constexpr std::array kEnding = {SIGINT, SIGTERM, SIGHUP};

// What is there to be removed by who is broken off: no destructor runs then.
char made_link[PATH_MAX];
char made_folder[PATH_MAX];

void remove_and_end(int signal_number) {
  unlink(made_link);
  rmdir(made_folder);
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void remove_when_broken_off() {
  for (int const signal_number : kEnding) {
    struct sigaction present {};
    sigaction(signal_number, nullptr, &present);
    if (present.sa_handler != SIG_DFL) continue;  // nohup's stays
    struct sigaction action {};
    action.sa_handler = remove_and_end;
    sigaction(signal_number, &action, nullptr);
  }
}

// Puts the signals off while it lives.
class EndingLater {
 public:
  EndingLater() {
    sigset_t ending;
    sigemptyset(&ending);
    for (int const signal_number : kEnding) sigaddset(&ending, signal_number);
    pthread_sigmask(SIG_BLOCK, &ending, &before_);
  }
  ~EndingLater() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  EndingLater(EndingLater const&) = delete;
  EndingLater& operator=(EndingLater const&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

ConfigDirectory::ConfigDirectory(std::filesystem::path const& model) : given_(model) {
  if (!std::filesystem::is_regular_file(model)) return;
  std::string name = (std::filesystem::temp_directory_path() / "expertmesh-bench-XXXXXX").string();
  std::string const link_in_it = name + "/config.json";
  if (link_in_it.size() >= sizeof made_link)
    throw FileError("mkdtemp", ENAMETOOLONG, std::strerror(ENAMETOOLONG), name);
  EndingLater const later;
  if (!mkdtemp(name.data())) throw FileError("mkdtemp", errno, std::strerror(errno), name);
  made_ = name;
  std::strcpy(made_folder, name.c_str());
  std::strcpy(made_link, (name + "/config.json").c_str());
  remove_when_broken_off();
  std::filesystem::create_symlink(std::filesystem::absolute(model), *made_ / "config.json");
}

ConfigDirectory::~ConfigDirectory() {
  std::error_code ignored;
  if (made_) std::filesystem::remove_all(*made_, ignored);
}

}  // namespace expertmesh
