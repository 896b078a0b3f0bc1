#include "common/experts/shared_experts.h"

namespace expertmesh {

SharedExperts::Found SharedExperts::find_or_claim(std::size_t layer_index, std::uint32_t expert) {
  std::lock_guard const lock(mutex_);
  Entry& entry = entries_[{layer_index, expert}];
  Found found{.expert = entry.expert.lock()};
  if (!found.expert) found.claimed = !std::exchange(entry.claimed, true);
  return found;
}

SharedExperts::Expert SharedExperts::enter(std::size_t layer_index, std::uint32_t expert, Expert loaded) {
  std::lock_guard const lock(mutex_);
  Entry& entry = entries_[{layer_index, expert}];
  entry.claimed = false;
  if (Expert held = entry.expert.lock()) return held;
  entry.expert = loaded;
  return loaded;
}

void SharedExperts::give_up(std::size_t layer_index, std::uint32_t expert) {
  std::lock_guard const lock(mutex_);
  entries_[{layer_index, expert}].claimed = false;
}

}  // namespace expertmesh
