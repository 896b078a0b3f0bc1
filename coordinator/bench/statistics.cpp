#include "coordinator/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/check.h"

namespace expertmesh {

double percentile(std::span<double const> sorted, double p) {
  EM_CHECK(p >= 0 && p <= 100, "percentile " << p);
  if (sorted.empty()) return 0;
  double const rank = p / 100 * static_cast<double>(sorted.size() - 1);
  auto const below = static_cast<std::size_t>(rank);
  std::size_t const above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

Summary summarise(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  auto const count = static_cast<double>(values.size());
  double const mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (double v : values) squares += (v - mean) * (v - mean);
  double const median = percentile(values, 50);
  return {.mean = mean,
          .median = median,
          .stddev = std::sqrt(squares / count),
          .p50 = median,
          .p95 = percentile(values, 95),
          .p99 = percentile(values, 99)};
}

}  // namespace expertmesh
