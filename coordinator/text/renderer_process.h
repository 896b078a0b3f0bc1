// One child process that renders chat templates: started, asked, killed and replaced.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

namespace expertmesh {

class RendererProcess {
 public:
  // Starts `python script` and waits for its first message. Throws OutsideError if it does not come.
  RendererProcess(std::string const& python, std::filesystem::path const& script);
  ~RendererProcess();  // kills and reaps
  RendererProcess(RendererProcess const&) = delete;
  RendererProcess& operator=(RendererProcess const&) = delete;

  // Sends a message and waits for the answer. None if the child died or the deadline passed: it must be replaced then.
  std::optional<std::string> ask(std::string const& message, std::chrono::milliseconds deadline);
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool send(std::string const& message, Clock::time_point deadline);
  std::optional<std::string> receive(Clock::time_point deadline);
  bool wait_for(short events, Clock::time_point deadline) const;
  bool receive_exactly(char* data, std::size_t size, Clock::time_point deadline);

  pid_t pid_ = -1;
  int socket_ = -1;
};

}  // namespace expertmesh
