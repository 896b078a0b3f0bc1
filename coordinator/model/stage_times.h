// Where the time of a step goes: seconds of each stage, in the order in which a step runs through them.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "common/kernels/device_marks.h"

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
  fetch,          // routing and tokens brought from a device; the wait for it, where the host's clock is read
  sampling,       // and log-probabilities; what a device leaves of it to the host is in `fetch`
};
constexpr std::size_t kNumStages = 11;
constexpr std::array<std::string_view, kNumStages> kStageNames = {"embedding",     "attention", "router",  "dispatch",
                                                                  "shared_expert", "experts",   "combine", "dense_ffn",
                                                                  "lm_head",       "fetch",     "sampling"};

using StageSeconds = std::array<double, kNumStages>;  // in the order of Stage

// Hears of each stage when it is over, by the host's clock. layer: through all stacks, if it is one's.
class StageListener {
 public:
  virtual ~StageListener() = default;
  using Time = std::chrono::steady_clock::time_point;
  virtual void stage_ended(Stage stage, std::optional<std::uint32_t> layer, Time begin, Time end) = 0;
};

// A stopwatch over the stages of one step: every moment between begin() and the last end() belongs to one of them. By
// the host's clock, which with a device tells what the calls take and, in `fetch`, the wait for all that they asked
// for; or by the device's own clock, once asked for.
class StageTimes {
 public:
  // From the next begin() on marks are set on the device; none: the host's clock again.
  void use(std::unique_ptr<DeviceMarks> marks) {
    marks_ = std::move(marks);
    ended_.clear();
  }
  // nullptr: nobody hears of them; nor does anybody while marks are set on a device.
  void tell(StageListener* listener) { listener_ = listener; }
  void begin() {
    seconds_.fill(0);
    if (marks_) return begin_on_device();
    mark_ = Clock::now();
  }
  // The time since begin() or the last end() was `stage`, of a layer if it is one's.
  void end(Stage stage, std::optional<std::uint32_t> layer = {}) {
    if (marks_) return end_on_device(stage);
    auto const now = Clock::now();
    if (listener_) listener_->stage_ended(stage, layer, mark_, now);
    seconds_[static_cast<std::size_t>(stage)] += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }
  // When the step is over, and before the times are looked at: waits for the device, if marks were set on it.
  void finish() {
    for (std::size_t i = 0; i < ended_.size(); ++i)
      seconds_[static_cast<std::size_t>(ended_[i])] += marks_->seconds_between(i, i + 1);
    ended_.clear();
  }
  [[nodiscard]] double operator[](Stage stage) const { return seconds_[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] StageSeconds const& seconds() const { return seconds_; }

 private:
  void begin_on_device() {
    ended_.clear();
    marks_->set(0);
  }
  void end_on_device(Stage stage) {
    ended_.push_back(stage);
    marks_->set(ended_.size());
  }

  using Clock = std::chrono::steady_clock;
  StageSeconds seconds_{};
  Clock::time_point mark_{};
  std::unique_ptr<DeviceMarks> marks_;
  StageListener* listener_ = nullptr;
  std::vector<Stage> ended_;  // by mark i + 1; mark 0 is begin()
};

}  // namespace expertmesh
