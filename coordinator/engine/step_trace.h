// What a trace hears of the steps of one runner. Private to coordinator/engine.
#pragma once
#include <exception>

#include "coordinator/observe/trace_lane.h"

namespace expertmesh {

class StepTrace final : public StageListener {
 public:
  explicit StepTrace(TraceLane& lane) : lane_(lane) {}
  void stage_ended(Stage stage, std::optional<std::uint32_t> layer, Time begin, Time end) override {
    lane_.put(StageTraced{
        .span = {.begin_ns = trace_ns(begin), .end_ns = trace_ns(end)}, .step = step_, .stage = stage, .layer = layer});
  }

  // A step, from its making to its end; one that is left by an exception has failed.
  class Step {
   public:
    // trace: null: nobody hears of it. what: the rest is filled here.
    Step(StepTrace* trace, StepTraced const& what) : trace_(trace), what_(what) {
      if (!trace_) return;
      what_.step = ++trace_->step_;
      what_.span.begin_ns = trace_ns(std::chrono::steady_clock::now());
    }
    ~Step() {
      if (!trace_) return;
      what_.span.end_ns = trace_ns(std::chrono::steady_clock::now());
      what_.failed = std::uncaught_exceptions() > 0;
      trace_->lane_.put(what_);
    }
    Step(Step const&) = delete;
    Step& operator=(Step const&) = delete;

   private:
    StepTrace* const trace_;
    StepTraced what_;
  };

 private:
  TraceLane& lane_;
  std::uint64_t step_ = 0;  // the last that began
};

}  // namespace expertmesh
