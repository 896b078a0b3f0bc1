#include "coordinator/cluster/leaving_workers.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

Life life(std::uint32_t worker) {
  return {.worker = WorkerId(worker), .incarnation = Incarnation(1)};
}

TEST(LeavingWorkers, GoWhenNoStepRuns) {
  LeavingWorkers leaving;
  leaving.add(life(1), 5);
  EXPECT_EQ(leaving.take(), std::vector{life(1)});
  EXPECT_TRUE(leaving.take().empty()) << "once";
}

TEST(LeavingWorkers, WaitForTheStepPathWhereItRuns) {
  LeavingWorkers leaving;
  leaving.set_idle(false);
  leaving.adopted(4);
  leaving.add(life(1), 5);
  leaving.add(life(2), 6);
  EXPECT_TRUE(leaving.take().empty());
  EXPECT_FALSE(leaving.is_news(4));
  EXPECT_TRUE(leaving.is_news(5));
  leaving.adopted(5);
  EXPECT_EQ(leaving.take(), std::vector{life(1)});
  EXPECT_TRUE(leaving.take().empty());
  leaving.set_idle(true);
  EXPECT_EQ(leaving.take(), std::vector{life(2)});
}

}  // namespace
}  // namespace expertmesh
