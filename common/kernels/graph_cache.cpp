#include "common/kernels/graph_cache.h"

#include <algorithm>

#include "common/base/error.h"
#include "common/base/log.h"

namespace expertmesh {

DeviceGraph* GraphCache::find_or_record(Key key, std::function<void()> const& ops) {
  auto const found = std::ranges::find_if(seen_, [&](Seen const& seen) { return std::ranges::equal(seen.key, key); });
  if (found == seen_.end()) {
    if (seen_.size() == kMostKeys) seen_.pop_back();
    seen_.push_front({.key = {key.begin(), key.end()}});
    return nullptr;
  }
  seen_.splice(seen_.begin(), seen_, found);
  Seen& seen = seen_.front();
  if (!seen.graph && !seen.refused) record(seen, ops);
  return seen.graph.get();
}

void GraphCache::record(Seen& seen, std::function<void()> const& ops) {
  device_.begin_recording();
  recording_ = true;
  try {
    ops();
  } catch (...) {
    recording_ = false;
    device_.discard_recording();
    throw;
  }
  recording_ = false;
  try {
    seen.graph = device_.end_recording();
  } catch (DeviceError const& error) {  // nothing of it was done
    seen.refused = true;
    spdlog::warn("steps stay launch by launch: {}", error.what());
  }
}

}  // namespace expertmesh
