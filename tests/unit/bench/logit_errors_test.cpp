// The distances of two rows of logits, by hand.
#include "coordinator/bench/logit_errors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace expertmesh {
namespace {

using Row = std::vector<float>;

TEST(LogitErrors, AConstantOfARowIsNoError) {
  LogitErrors errors;
  errors.add(Row{1, 2, 3}, Row{-4, -3, -2}, 1);
  EXPECT_EQ(errors.num_rows(), 1U);
  EXPECT_NEAR(errors.rms(), 0, 1e-12);
  EXPECT_NEAR(errors.largest(), 0, 1e-12);
  EXPECT_NEAR(errors.divergence(), 0, 1e-12);
  EXPECT_EQ(errors.same_choice(), 1);
  EXPECT_NEAR(errors.perplexity(), errors.reference_perplexity(), 1e-12);
}

TEST(LogitErrors, AreInUnitsOfTheReferencesDeviation) {
  LogitErrors errors;
  errors.add(Row{-2, 2, 0, 0}, Row{-2, 2, 1, -1}, std::nullopt);  // deviation sqrt(2), errors 0, 0, 1, -1
  EXPECT_DOUBLE_EQ(errors.rms(), 0.5);
  EXPECT_DOUBLE_EQ(errors.largest(), 1 / std::sqrt(2));
  EXPECT_EQ(errors.same_choice(), 1);
  EXPECT_EQ(errors.perplexity(), 0);
}

TEST(LogitErrors, DivergenceAndPerplexityAreOfTheDistributions) {
  LogitErrors errors;
  auto const half = static_cast<float>(std::log(0.5));
  auto const quarter = static_cast<float>(std::log(0.25));
  errors.add(Row{half, half}, Row{quarter, static_cast<float>(std::log(0.75))}, 0);
  errors.add(Row{half, half}, Row{half, half}, 1);
  EXPECT_NEAR(errors.divergence(), (0.5 * std::log(2.0) + 0.5 * std::log(0.5 / 0.75)) / 2, 1e-6);
  EXPECT_NEAR(errors.perplexity(), std::sqrt(4.0 * 2.0), 1e-6);
  EXPECT_NEAR(errors.reference_perplexity(), 2, 1e-6);
  EXPECT_EQ(errors.same_choice(), 0.5);  // of two equal ones the first is chosen
}

TEST(LogitErrors, OfNothingAreNone) {
  LogitErrors const errors;
  EXPECT_EQ(errors.rms() + errors.largest() + errors.divergence() + errors.same_choice() + errors.perplexity(), 0);
}

}  // namespace
}  // namespace expertmesh
