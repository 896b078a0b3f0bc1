#include "worker/coordinator_roll.h"

#include <algorithm>
#include <utility>

namespace expertmesh {

CoordinatorRoll::CoordinatorRoll(std::size_t num_coordinators, std::function<void(ExitCode)> end)
    : end_(std::move(end)), states_(num_coordinators, State::awaited) {}

void CoordinatorRoll::has(std::size_t coordinator) {
  std::lock_guard const lock(mutex_);
  states_[coordinator] = State::here;
}

void CoordinatorRoll::ended(std::size_t coordinator, ExitCode code) {
  std::lock_guard const lock(mutex_);
  last_ = code == ExitCode::told ? State::told : code == ExitCode::refused ? State::refused : State::lost;
  states_[coordinator] = last_;
  end_if_alone();
}

void CoordinatorRoll::asked_to_end() {
  std::lock_guard const lock(mutex_);
  asked_to_end_ = true;
  end_if_alone();
}

bool CoordinatorRoll::is_asked_to_end() const {
  std::lock_guard const lock(mutex_);
  return asked_to_end_;
}

void CoordinatorRoll::give_up() {
  end_(ExitCode::lost);
}

bool CoordinatorRoll::any(State state) const {
  return std::ranges::find(states_, state) != states_.end();
}

void CoordinatorRoll::end_if_alone() {
  if (any(State::here) || (any(State::awaited) && !asked_to_end_)) return;
  if (last_ == State::told) return end_(ExitCode::told);
  if (any(State::lost) || any(State::awaited)) return end_(ExitCode::lost);
  end_(any(State::told) ? ExitCode::told : ExitCode::refused);
}

}  // namespace expertmesh
