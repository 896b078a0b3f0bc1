// This program anew, in the place of this process: as it was started, with nothing of what it has become.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace expertmesh {

class Restart {
 public:
  Restart(int argc, char** argv);  // remembers arguments and environment: before anything changes them

  // Where clients have found it: there they find the next one, too, if --port 0 let the system choose.
  void listen_at(std::uint16_t port);

  // Ends the child processes and runs the launcher with the same arguments. Returns only if that cannot be run.
  void run() const;

 private:
  std::vector<std::string> arguments_;
  std::vector<std::string> environment_;
};

}  // namespace expertmesh
