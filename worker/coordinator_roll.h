// Which coordinators a worker has, and when it has none left: then the process ends.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "worker/control_client.h"

namespace expertmesh {

// Any thread.
class CoordinatorRoll {
 public:
  // They are all awaited. end: ends the process.
  CoordinatorRoll(std::size_t num_coordinators, std::function<void(ExitCode)> end);

  void has(std::size_t coordinator);  // taken in by it
  // The end of that, or of an attempt. One that was lost is no reason to stay: it may come back while there are others.
  void ended(std::size_t coordinator, ExitCode code);
  // A signal: from now on one that has not taken it in yet is no reason to stay either.
  void asked_to_end();
  [[nodiscard]] bool is_asked_to_end() const;
  void give_up();  // whatever coordinators there are: a process that begins anew is of more use to them

 private:
  enum class State : std::uint8_t { awaited, here, lost, told, refused };
  [[nodiscard]] bool any(State state) const;
  void end_if_alone();

  std::function<void(ExitCode)> const end_;
  mutable std::mutex mutex_;
  std::vector<State> states_;  // guarded by mutex_, like the next two
  State last_ = State::lost;   // of an end
  bool asked_to_end_ = false;
};

}  // namespace expertmesh
