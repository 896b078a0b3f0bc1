// SIGINT and SIGTERM as something to wait for. The second one ends the process at once.
#pragma once

namespace expertmesh {

class ShutdownSignal {
 public:
  ShutdownSignal();  // from now on the signals are caught; one object a process
  void wait() const;
  void raise() const;  // as if one had come; any thread

 private:
  int event_;
};

}  // namespace expertmesh
