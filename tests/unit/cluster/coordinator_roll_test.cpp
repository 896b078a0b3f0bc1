#include "worker/coordinator_roll.h"

#include <gtest/gtest.h>

#include <optional>

namespace expertmesh {
namespace {

struct CoordinatorRollTest : ::testing::Test {
  std::optional<ExitCode> end;
  CoordinatorRoll roll{2, [this](ExitCode code) { end = code; }};
  CoordinatorRoll one{1, [this](ExitCode code) { end = code; }};
};

TEST_F(CoordinatorRollTest, TheOnlyOnesWordIsTheProcesss) {
  for (ExitCode const code : {ExitCode::told, ExitCode::lost, ExitCode::refused}) {
    end.reset();
    one.has(0);
    EXPECT_FALSE(end);
    one.ended(0, code);
    EXPECT_EQ(end, code);
  }
}

TEST_F(CoordinatorRollTest, OneIsEnoughToStayFor) {
  roll.has(0);
  roll.has(1);
  roll.ended(0, ExitCode::lost);
  EXPECT_FALSE(end);
  roll.ended(0, ExitCode::lost);  // another attempt
  EXPECT_FALSE(end);
  roll.has(0);
  roll.ended(1, ExitCode::told);
  EXPECT_FALSE(end);
  roll.ended(0, ExitCode::lost);
  EXPECT_EQ(end, ExitCode::lost) << "it may come back, and finds this worker again";
}

TEST_F(CoordinatorRollTest, TheLastThatTellsItToEndEndsIt) {
  roll.has(0);
  roll.ended(1, ExitCode::lost);
  EXPECT_FALSE(end);
  roll.ended(0, ExitCode::told);
  EXPECT_EQ(end, ExitCode::told);
}

TEST_F(CoordinatorRollTest, RefusedByAllItNeedNotComeBack) {
  roll.ended(0, ExitCode::refused);
  EXPECT_FALSE(end) << "the other is awaited";
  roll.ended(1, ExitCode::refused);
  EXPECT_EQ(end, ExitCode::refused);
}

TEST_F(CoordinatorRollTest, NobodyThere) {
  roll.ended(0, ExitCode::lost);
  EXPECT_FALSE(end);
  roll.ended(1, ExitCode::refused);
  EXPECT_EQ(end, ExitCode::lost);
}

TEST_F(CoordinatorRollTest, AskedToEndItWaitsForThoseThatHaveTakenItIn) {
  roll.has(0);
  roll.asked_to_end();
  EXPECT_FALSE(end) << "it has to let it go";
  roll.ended(0, ExitCode::told);
  EXPECT_EQ(end, ExitCode::told) << "the one it still waits for does not matter";
}

}  // namespace
}  // namespace expertmesh
