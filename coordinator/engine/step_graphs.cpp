#include "coordinator/engine/step_graphs.h"

#include <algorithm>

namespace expertmesh {

void StepGraphs::run(Shape const& shape, std::function<void()> const& ops) {
  auto const found = std::ranges::find(seen_, shape, &Seen::shape);
  if (found == seen_.end()) {
    if (seen_.size() == kMostShapes) seen_.pop_back();
    seen_.push_front({.shape = shape, .graph = nullptr});
    return ops();
  }
  seen_.splice(seen_.begin(), seen_, found);
  Seen& seen = seen_.front();
  if (!seen.graph) record(seen, ops);
  seen.graph->launch();
  ++num_launched_;
}

void StepGraphs::record(Seen& seen, std::function<void()> const& ops) {
  device_.begin_recording();
  try {
    ops();
  } catch (...) {
    device_.discard_recording();
    throw;
  }
  seen.graph = device_.end_recording();
}

}  // namespace expertmesh
