// Looks for stop strings in text that comes in pieces. The match that ends first wins; of matches that end together,
// the longest. Text is held back only while it could still become a stop string. How the text is cut changes nothing.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace expertmesh {

class StopMatcher {
 public:
  StopMatcher(std::vector<std::string> stops, bool include_stop_in_output)
      : stops_(std::move(stops)), include_(include_stop_in_output) {}

  // Text that may be given out now. After stopped() nothing more is taken.
  std::string push(std::string_view piece);
  // What was held back when no stop was met.
  std::string finish();
  // The stop string that was met.
  [[nodiscard]] std::optional<std::string> const& stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  bool include_;
  std::string held_;  // the end of the text so far that is a proper prefix of a stop string
  std::optional<std::string> stopped_;
};

}  // namespace expertmesh
