#include "coordinator/cluster/heartbeat_monitor.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

using namespace std::chrono_literals;
using Silent = std::vector<std::size_t>;

struct HeartbeatMonitorTest : ::testing::Test {
  HeartbeatMonitor::Clock::time_point start;
  HeartbeatMonitor monitor{3};
  auto at(std::chrono::milliseconds ms) const { return start + ms; }
  Silent check_in_time(std::chrono::milliseconds ms) { return monitor.check(at(ms), at(ms)); }
};

TEST_F(HeartbeatMonitorTest, AWorkerIsSilentOnceItsTimeoutHasPassed) {
  monitor.watch(0, 200ms, start);
  monitor.watch(2, 200ms, start);
  for (auto t = 25ms; t <= 200ms; t += 25ms) {
    monitor.beat(2, at(t));
    EXPECT_EQ(check_in_time(t), Silent{}) << t.count();
  }
  monitor.beat(2, at(225ms));
  EXPECT_EQ(check_in_time(225ms), Silent{0});
  EXPECT_EQ(check_in_time(250ms), Silent{});  // told once
  EXPECT_EQ(monitor.age(0, at(250ms)), std::nullopt);
  EXPECT_EQ(monitor.age(2, at(250ms)), 25ms);
}

TEST_F(HeartbeatMonitorTest, TheMonitorsOwnDelayIsNobodysFault) {
  monitor.watch(0, 200ms, start);
  EXPECT_EQ(check_in_time(25ms), Silent{});
  EXPECT_EQ(monitor.check(at(5025ms), at(50ms)), Silent{});  // 5 s late itself
  EXPECT_EQ(check_in_time(5050ms), Silent{});
  // The worker really is gone: the silence that was watched adds up.
  auto t = 5050ms;
  Silent silent;
  while (silent.empty() && t < 6000ms) silent = check_in_time(t += 25ms);
  EXPECT_EQ(silent, Silent{0});
  EXPECT_EQ(t, 5200ms);
}

TEST_F(HeartbeatMonitorTest, AMonitorThatIsAlwaysLateStillNotices) {
  monitor.watch(0, 200ms, start);
  auto t = 0ms;
  Silent silent;
  while (silent.empty() && t < 2000ms) {
    t += 60ms;
    silent = monitor.check(at(t), at(t - 35ms));
  }
  EXPECT_EQ(silent, Silent{0});
  EXPECT_EQ(t, 9 * 60ms);  // 25 ms of each 60 count
}

TEST_F(HeartbeatMonitorTest, BeatTellsTheGap) {
  EXPECT_EQ(monitor.beat(1, at(5ms)), 0ms);  // not watched
  monitor.watch(1, 200ms, at(10ms));
  EXPECT_EQ(monitor.beat(1, at(130ms)), 120ms);
  EXPECT_EQ(monitor.beat(1, at(155ms)), 25ms);
  monitor.unwatch(1);
  EXPECT_EQ(check_in_time(9000ms), Silent{});
}

}  // namespace
}  // namespace expertmesh
