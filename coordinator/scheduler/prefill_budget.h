// How many prompt tokens may run beside decodes so that a step stays within a time budget.
#pragma once
#include <cstddef>

namespace expertmesh {

// Takes a step's time as decode seconds + prefill tokens x seconds a token, both learnt as running means. Changes when
// tokens are computed, never their values.
class PrefillBudget {
 public:
  static constexpr std::size_t kLeastTokens = 32;  // in every step, whatever the budget: prompts must go on

  // step_seconds: 0 means no limit.
  explicit PrefillBudget(double step_seconds) : step_seconds_(step_seconds) {}

  // For the next step with decodes: at least kLeastTokens, at most size_t's largest.
  [[nodiscard]] std::size_t tokens() const;
  // A step with decodes has run. Steps of prompts alone say nothing here: nobody waits between tokens meanwhile.
  void observe(std::size_t prefill_tokens, double seconds);

 private:
  double step_seconds_;
  double decode_seconds_ = 0;   // of a step without prompts; 0: none seen yet
  double seconds_a_token_ = 0;  // of prompts; 0: none seen yet
};

}  // namespace expertmesh
