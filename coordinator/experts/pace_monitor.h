// Finds workers that take several times as long as the others for the same work, from how long their answers took.
// Pure: time comes in as arguments.
#pragma once
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "coordinator/cluster/membership.h"

namespace expertmesh {

class PaceMonitor {
 public:
  // A worker answered so many rows of experts (a row counts for each of its experts), so long after it was asked.
  void add(Life life, std::size_t entries, double seconds);

  struct Verdict {
    Life life;
    double speed = 1;  // relative to the others: 1, or a power of 1/2 for one that is slow
  };
  // What has changed since the last look; called about once a second, and knows time by these calls alone. Lives that
  // are not among the living are forgotten.
  std::vector<Verdict> judge(std::vector<Life> const& living);

 private:
  // Answers of about as many rows: those of twice as many are another class, since a short answer is mostly the way
  // there and back. Older ones count less, and in a few looks not at all: what is left of sizes that no longer come
  // says nothing of today.
  struct Answers {
    double count = 0;
    double seconds = 0;
    [[nodiscard]] double mean() const { return seconds / count; }
  };
  static constexpr std::size_t kSizeClasses = 16;
  struct Pace {
    Life life;
    std::array<Answers, kSizeClasses> answers{};
    std::size_t num_answers = 0;
    double speed = 1;
    std::size_t looks_alike = 0;   // in a row that would change the speed
    std::size_t looks_unsure = 0;  // in a row, of a slow one that does not look slow now
  };
  [[nodiscard]] std::optional<double> relative_speed(Pace const& pace) const;

  std::vector<Pace> paces_;
};

}  // namespace expertmesh
