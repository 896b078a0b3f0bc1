#include "coordinator/engine/step_graphs.h"

#include <algorithm>

#include "common/base/error.h"
#include "common/base/log.h"

namespace expertmesh {

void StepGraphs::run(Shape const& shape, std::function<void()> const& ops) {
  auto const found = std::ranges::find(seen_, shape, &Seen::shape);
  if (found == seen_.end()) {
    if (seen_.size() == kMostShapes) seen_.pop_back();
    seen_.push_front({.shape = shape});
    return ops();
  }
  seen_.splice(seen_.begin(), seen_, found);
  Seen& seen = seen_.front();
  if (!seen.graph && !seen.refused) record(seen, ops);
  if (seen.refused) return ops();
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
  try {
    seen.graph = device_.end_recording();
  } catch (DeviceError const& error) {  // nothing of it was done
    seen.refused = true;
    spdlog::warn("steps of {} tokens stay launch by launch: {}", seen.shape.tokens, error.what());
  }
}

}  // namespace expertmesh
