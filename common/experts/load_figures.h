// What loading weights took, against the time in which memory gives as many bytes.
#pragma once
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>

#include "common/checkpoint/weight_source.h"

namespace expertmesh {

struct LoadFigures {
  std::size_t checkpoint_bytes = 0;          // read
  std::optional<std::size_t> cache_bytes{};  // where there is a packed cache
  double seconds = 0;

  // "1418170368 bytes of the checkpoint in 0.31 s, 4.57 GB/s", and what came from the packed cache, and the share of
  // that time in which as many bytes are read from memory at this rate, if it is known.
  [[nodiscard]] std::string text(std::optional<double> bytes_per_second) const;
};

// Figures of what is loaded from a source in a lifetime of this.
class LoadTimer {
 public:
  explicit LoadTimer(WeightSource const& source);
  [[nodiscard]] LoadFigures figures() const;

 private:
  WeightSource const& source_;
  std::size_t const bytes_before_;
  std::size_t const cache_bytes_before_;
  std::chrono::steady_clock::time_point const begin_ = std::chrono::steady_clock::now();
};

}  // namespace expertmesh
