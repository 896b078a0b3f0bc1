#include "coordinator/experts/pace_monitor.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

Life life(std::uint32_t worker) {
  return {.worker = WorkerId(worker), .incarnation = Incarnation(1)};
}

struct PaceMonitorTest : ::testing::Test {
  PaceMonitor monitor;
  std::vector<Life> living{life(1), life(2), life(3)};

  // A second of answers: worker w takes this long for a row, and 50 us for the way.
  std::vector<PaceMonitor::Verdict> second(std::vector<double> const& us_per_row, std::size_t rows = 10) {
    for (int i = 0; i < 200; ++i)
      for (std::uint32_t w = 1; w <= us_per_row.size(); ++w)
        if (us_per_row[w - 1] > 0)
          monitor.add(life(w), rows, 50e-6 + us_per_row[w - 1] * 1e-6 * static_cast<double>(rows));
    return monitor.judge(living);
  }
};

TEST_F(PaceMonitorTest, WhoIsAsFastAsTheOthersIsLeftAlone) {
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(second({100, 130, 200}).empty());
}

TEST_F(PaceMonitorTest, WhoIsSeveralTimesSlowerForSecondsIsSlow) {
  EXPECT_TRUE(second({100, 100, 500}).empty());
  EXPECT_TRUE(second({100, 100, 500}).empty());
  auto const changes = second({100, 100, 500});
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].life, life(3));
  EXPECT_EQ(changes[0].speed, 0.125);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(second({100, 100, 500}).empty()) << "said once";
}

TEST_F(PaceMonitorTest, FewRowsDoNotLookSlow) {
  for (int i = 0; i < 10; ++i) {
    for (int k = 0; k < 200; ++k) {
      monitor.add(life(1), 50, 50e-6 + 50 * 100e-6);
      monitor.add(life(2), 1, 50e-6 + 100e-6);  // by the row, it takes half as long again
      monitor.add(life(3), 50, 50e-6 + 50 * 100e-6);
    }
    EXPECT_TRUE(monitor.judge(living).empty());
  }
}

TEST_F(PaceMonitorTest, ASlowOneThatRecoversIsAsGoodAsTheOthers) {
  for (int i = 0; i < 3; ++i) second({100, 100, 1000});
  std::vector<PaceMonitor::Verdict> changes;
  for (int i = 0; i < 10 && changes.empty(); ++i) changes = second({100, 100, 100});
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].speed, 1);
}

TEST_F(PaceMonitorTest, AnswersOfASizeThatNoLongerComesDoNotKeepItSlow) {
  for (int i = 0; i < 3; ++i) second({100, 100, 1000});
  for (std::size_t rows : {3, 10, 30}) second({100, 100, 1000}, rows);
  std::vector<PaceMonitor::Verdict> changes;
  for (int i = 0; i < 20 && changes.empty(); ++i) changes = second({100, 100, 100}, 100);
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].speed, 1);
}

// With a small share its few rows leave with many of others', which they wait for where processes share cores.
TEST_F(PaceMonitorTest, ASlowOneThatNoLongerLooksSlowIsTriedAgain) {
  for (int i = 0; i < 3; ++i) second({100, 100, 1000});
  std::vector<PaceMonitor::Verdict> changes;
  int seconds = 0;
  for (; seconds < 60 && changes.empty(); ++seconds) changes = second({100, 100, 200});
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].speed, 1);
  EXPECT_GE(seconds, 20);
  for (int i = 0; i < 60; ++i) EXPECT_TRUE(second({100, 100, 200}).empty()) << "and stays";
}

TEST_F(PaceMonitorTest, ASlowOneThatGetsNothingIsTriedAgain) {
  for (int i = 0; i < 3; ++i) second({100, 100, 1000});
  int seconds = 0;
  std::vector<PaceMonitor::Verdict> changes;
  for (; seconds < 200 && changes.empty(); ++seconds) changes = second({100, 100, 0});
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].speed, 1);
  EXPECT_GE(seconds, 20);
}

TEST_F(PaceMonitorTest, OfTwoTheOtherIsTheMeasureAndOneAloneIsNeverSlow) {
  living = {life(1), life(2)};
  std::vector<PaceMonitor::Verdict> changes;
  for (int i = 0; i < 3; ++i) changes = second({800, 100});
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].life, life(1));
  PaceMonitor alone;
  for (int i = 0; i < 10; ++i) {
    for (int k = 0; k < 200; ++k) alone.add(life(1), 1, 1);
    EXPECT_TRUE(alone.judge({life(1)}).empty());
  }
}

}  // namespace
}  // namespace expertmesh
