#include "coordinator/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace expertmesh {

std::string StopMatcher::push(std::string_view piece) {
  if (stopped_) return {};
  std::size_t const first_new = held_.size();
  held_ += piece;
  for (std::size_t end = first_new + 1; end <= held_.size(); ++end) {
    std::string_view const seen = std::string_view(held_).substr(0, end);
    std::string const* met = nullptr;
    for (auto const& stop : stops_)
      if (!stop.empty() && seen.ends_with(stop) && (!met || stop.size() > met->size())) met = &stop;
    if (!met) continue;
    stopped_ = *met;
    std::string out(seen.substr(0, include_ ? end : end - met->size()));
    held_.clear();
    return out;
  }
  std::size_t keep = 0;
  for (auto const& stop : stops_)
    for (std::size_t n = std::min(stop.empty() ? 0 : stop.size() - 1, held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) keep = n;
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::finish() {
  return std::exchange(held_, {});
}

}  // namespace expertmesh
