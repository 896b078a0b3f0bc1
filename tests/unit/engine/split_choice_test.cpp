#include "coordinator/engine/split_choice.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

constexpr SplitChoice::Kind kPrompt{.tokens = 512, .decodes_only = false};
constexpr SplitChoice::Kind kDecode{.tokens = 16, .decodes_only = true};

// Steps of a kind that take so long; how many of them were split.
int split_steps(SplitChoice& choice, SplitChoice::Kind kind, int steps, double whole, double split) {
  int count = 0;
  for (int i = 0; i < steps; ++i) {
    StepForm const form = choice.choose(kind);
    choice.add(kind, form, form == StepForm::split ? split : whole);
    if (form == StepForm::split) ++count;
  }
  return count;
}

constexpr int kTried = 2 * SplitChoice::kTries;

TEST(SplitChoice, BothAreTriedThenTheFasterOneIsTaken) {
  SplitChoice choice;
  EXPECT_EQ(split_steps(choice, kPrompt, kTried, 1.0, 0.7), SplitChoice::kTries);
  EXPECT_EQ(split_steps(choice, kPrompt, 50, 1.0, 0.7), 50);
  EXPECT_EQ(split_steps(choice, kDecode, kTried, 1.0, 1.9), SplitChoice::kTries);
  EXPECT_EQ(split_steps(choice, kDecode, 50, 1.0, 1.9), 0);
  EXPECT_EQ(split_steps(choice, kPrompt, 10, 1.0, 0.7), 10) << "each kind by itself";
}

TEST(SplitChoice, KindsAreSizesToAPowerOfTwoOfDecodesOrOthers) {
  SplitChoice choice;
  split_steps(choice, {.tokens = 64, .decodes_only = true}, kTried, 1.0, 0.7);
  EXPECT_EQ(split_steps(choice, {.tokens = 127, .decodes_only = true}, 10, 2.0, 1.4), 10);
  EXPECT_EQ(split_steps(choice, {.tokens = 63, .decodes_only = true}, kTried, 1.0, 0.7), SplitChoice::kTries);
  EXPECT_EQ(split_steps(choice, {.tokens = 64, .decodes_only = false}, kTried, 1.0, 0.7), SplitChoice::kTries);
}

TEST(SplitChoice, ASlowFirstStepDecidesNothing) {
  SplitChoice choice;
  EXPECT_EQ(choice.choose(kPrompt), StepForm::whole);
  choice.add(kPrompt, StepForm::whole, 50.0);
  EXPECT_EQ(split_steps(choice, kPrompt, kTried - 1, 1.0, 1.2), SplitChoice::kTries);
  EXPECT_EQ(split_steps(choice, kPrompt, 50, 1.0, 1.2), 0);
}

TEST(SplitChoice, TheOtherOneIsTriedAgainSoonerWhereItIsNear) {
  SplitChoice near;
  split_steps(near, kDecode, kTried, 1.0, 1.1);
  EXPECT_EQ(split_steps(near, kDecode, 4 * SplitChoice::kSoon, 1.0, 1.1), 4);
  SplitChoice far;
  split_steps(far, kDecode, kTried, 1.0, 2.0);
  EXPECT_EQ(split_steps(far, kDecode, SplitChoice::kLate - 1, 1.0, 2.0), 0);
  EXPECT_EQ(split_steps(far, kDecode, 1, 1.0, 2.0), 1);
}

TEST(SplitChoice, WhatHasChangedIsFollowed) {
  SplitChoice choice;
  split_steps(choice, kDecode, kTried, 1.0, 1.1);
  split_steps(choice, kDecode, 100, 1.0, 1.1);
  EXPECT_GT(split_steps(choice, kDecode, 200, 3.0, 1.1), 150) << "workers have moved to cores of their own";
}

TEST(SplitChoice, OneOddStepChangesNothing) {
  SplitChoice choice;
  split_steps(choice, kPrompt, kTried + 10, 1.0, 0.7);
  choice.add(kPrompt, choice.choose(kPrompt), 100.0);  // a worker died in it
  EXPECT_EQ(split_steps(choice, kPrompt, 10, 1.0, 0.7), 10);
}

}  // namespace
}  // namespace expertmesh
