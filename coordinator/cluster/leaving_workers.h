// Workers that have handed over what they held, until the step path has nothing under way to them: whoever is asked to
// go sooner would be found gone by the step that runs.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "coordinator/cluster/membership.h"

namespace expertmesh {

// Guarded by whoever has it, but for is_news().
class LeavingWorkers {
 public:
  // version: the first of the group in which it is no member.
  void add(Life life, std::uint64_t version) { waiting_.push_back({.life = life, .version = version}); }
  // The step path goes by this version. Any thread: whether adopted() does not know.
  [[nodiscard]] bool is_news(std::uint64_t version) const {
    return adopted_.load(std::memory_order_relaxed) != version;
  }
  void adopted(std::uint64_t version) { adopted_.store(version, std::memory_order_relaxed); }
  void set_idle(bool idle) { idle_ = idle; }  // no step runs

  // Whom to ask to go now; each is given out once.
  std::vector<Life> take() {
    std::vector<Life> out;
    std::erase_if(waiting_, [&](Waiting const& worker) {
      bool const may_go = idle_ || adopted_.load(std::memory_order_relaxed) >= worker.version;
      if (may_go) out.push_back(worker.life);
      return may_go;
    });
    return out;
  }

 private:
  struct Waiting {
    Life life;
    std::uint64_t version = 0;
  };
  std::vector<Waiting> waiting_;
  std::atomic<std::uint64_t> adopted_ = 0;
  bool idle_ = true;
};

}  // namespace expertmesh
