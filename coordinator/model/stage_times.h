// Where the time of a step goes: seconds of each stage, in the order in which a step runs through them.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace expertmesh {

enum class Stage : std::uint8_t {
  embedding,      // and the angles of the position encoding
  attention,      // norm, attention, residual
  router,         // norm, gate logits, choice
  dispatch,       // rows packed and sent
  shared_expert,  // while the routed ones run
  experts,        // until every row is back: the experts' computation in this process, the wait for workers
  combine,        // and residual
  dense_ffn,      // norm, dense FFN, residual
  lm_head,        // final norm, logits
  sampling,       // and log-probabilities
};
constexpr std::size_t kNumStages = 10;
constexpr std::array<std::string_view, kNumStages> kStageNames = {"embedding",     "attention", "router",  "dispatch",
                                                                  "shared_expert", "experts",   "combine", "dense_ffn",
                                                                  "lm_head",       "sampling"};

// A stopwatch over the stages of one step: every moment between begin() and the last end() belongs to one of them.
class StageTimes {
 public:
  void begin() {
    seconds_.fill(0);
    mark_ = Clock::now();
  }
  // The time since begin() or the last end() was `stage`.
  void end(Stage stage) {
    auto const now = Clock::now();
    seconds_[static_cast<std::size_t>(stage)] += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }
  [[nodiscard]] double operator[](Stage stage) const { return seconds_[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] std::array<double, kNumStages> const& seconds() const { return seconds_; }  // in the order of Stage

 private:
  using Clock = std::chrono::steady_clock;
  std::array<double, kNumStages> seconds_{};
  Clock::time_point mark_{};
};

}  // namespace expertmesh
