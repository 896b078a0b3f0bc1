// Summaries as NumPy makes them.
#include "coordinator/bench/statistics.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

TEST(Percentile, InterpolatesBetweenRanks) {
  std::vector<double> const values{1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 50), 3);
  EXPECT_DOUBLE_EQ(percentile(values, 95), 7.4);
  EXPECT_DOUBLE_EQ(percentile(values, 100), 8);
  EXPECT_DOUBLE_EQ(percentile(std::vector<double>{5}, 99), 5);
  EXPECT_DOUBLE_EQ(percentile({}, 50), 0);
}

TEST(Summary, OfValuesInAnyOrder) {
  Summary const s = summarise({9, 2, 4, 4, 5, 4, 5, 7});
  EXPECT_DOUBLE_EQ(s.mean, 5);
  EXPECT_DOUBLE_EQ(s.stddev, 2);
  EXPECT_DOUBLE_EQ(s.median, 4.5);
  EXPECT_DOUBLE_EQ(s.p50, 4.5);
  EXPECT_DOUBLE_EQ(s.p99, 8.86);
  EXPECT_DOUBLE_EQ(summarise({}).mean, 0);
}

}  // namespace
}  // namespace expertmesh
