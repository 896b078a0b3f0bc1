#include "coordinator/engine/split_choice.h"

#include <algorithm>
#include <bit>

namespace expertmesh {

SplitChoice::Seen& SplitChoice::of(Kind const& kind) {
  auto const size = static_cast<std::size_t>(std::bit_width(kind.tokens));
  return seen_[kind.decodes_only ? 1 : 0][std::min(size, kSizes - 1)];
}

StepForm SplitChoice::choose(Kind const& kind) {
  Seen& seen = of(kind);
  auto const& [whole, split] = seen.forms;
  if (whole.seen < kTries || split.seen < kTries) return whole.seen <= split.seen ? StepForm::whole : StepForm::split;
  bool const split_is_faster = split.seconds < whole.seconds;
  double const ahead = split_is_faster ? whole.seconds / split.seconds : split.seconds / whole.seconds;
  bool const try_other = ++seen.since_other >= (ahead > kFarAhead ? kLate : kSoon);
  if (try_other) seen.since_other = 0;
  return split_is_faster != try_other ? StepForm::split : StepForm::whole;
}

void SplitChoice::add(Kind const& kind, StepForm form, double seconds) {
  Form& of_form = of(kind).forms[static_cast<std::size_t>(form)];
  double const sample = seconds / static_cast<double>(std::max<std::size_t>(kind.tokens, 1));
  ++of_form.seen;
  if (of_form.seen == 1)
    of_form.seconds = sample;
  else if (of_form.seen <= kTries)
    of_form.seconds = std::min(of_form.seconds, sample);
  else  // one odd sample changes little
    of_form.seconds += 0.25 * (std::min(sample, 2 * of_form.seconds) - of_form.seconds);
}

}  // namespace expertmesh
