// Stages by marks on a device: each gets the time between its own mark and the one before, once the step is over.
#include "coordinator/model/stage_times.h"

#include <gtest/gtest.h>

#include <numeric>

namespace expertmesh {
namespace {

// Mark i is passed at the i-th of these moments.
class FakeMarks final : public DeviceMarks {
 public:
  explicit FakeMarks(std::vector<std::size_t>& set) : set_(set) {}
  void set(std::size_t mark) override { set_.push_back(mark); }
  double seconds_between(std::size_t from, std::size_t to) override {
    static constexpr double kMoments[] = {10, 11, 13, 17, 25};
    return kMoments[to] - kMoments[from];
  }

 private:
  std::vector<std::size_t>& set_;
};

TEST(StageTimes, AreTakenFromMarksOfTheDevice) {
  StageTimes times;
  std::vector<std::size_t> set;
  times.use(std::make_unique<FakeMarks>(set));
  for (int step = 0; step < 2; ++step) {
    set.clear();
    times.begin();
    times.end(Stage::attention);
    times.end(Stage::experts);
    times.end(Stage::attention);
    times.end(Stage::lm_head);
    EXPECT_EQ(set, (std::vector<std::size_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(times[Stage::attention], 0);  // nothing is waited for within a step
    times.finish();
    EXPECT_EQ(times[Stage::attention], 1 + 4);
    EXPECT_EQ(times[Stage::experts], 2);
    EXPECT_EQ(times[Stage::lm_head], 8);
    EXPECT_EQ(std::accumulate(times.seconds().begin(), times.seconds().end(), 0.0), 15);
  }
  // A step that was given up leaves nothing to the next.
  times.begin();
  times.end(Stage::sampling);
  times.begin();
  times.end(Stage::router);
  times.finish();
  EXPECT_EQ(times[Stage::sampling], 0);
  EXPECT_EQ(times[Stage::router], 1);
}

TEST(StageTimes, ComeFromTheHostsClockAgain) {
  StageTimes times;
  std::vector<std::size_t> set;
  times.use(std::make_unique<FakeMarks>(set));
  times.begin();
  times.end(Stage::router);
  times.use(nullptr);
  set.clear();
  times.begin();
  times.end(Stage::attention);
  times.finish();
  EXPECT_TRUE(set.empty());
  EXPECT_EQ(times[Stage::router], 0);
  EXPECT_GE(times[Stage::attention], 0);
  EXPECT_LT(times[Stage::attention], 10);
}

}  // namespace
}  // namespace expertmesh
