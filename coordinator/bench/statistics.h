// Summaries of measured values.
#pragma once
#include <span>
#include <vector>

namespace expertmesh {

// The p-th percentile, 0 <= p <= 100, interpolated linearly between the two nearest ranks (NumPy's default); 0 of no
// values. sorted: in rising order.
double percentile(std::span<double const> sorted, double p);

struct Summary {
  double mean = 0;
  double median = 0;
  double stddev = 0;  // of the population
  double p50 = 0;
  double p95 = 0;
  double p99 = 0;
};
Summary summarise(std::vector<double> values);  // all 0 of no values

}  // namespace expertmesh
