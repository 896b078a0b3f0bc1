// The numbers that host and device share.
#include "common/kernels/token_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(TokenChoice, ExponentialsAreOffByAUnitAndAHalfAtMost) {
  std::mt19937_64 rng(1);
  std::uniform_real_distribution<double> log_of_z(-20, std::log(64.0));
  double worst = 0;
  for (int i = 0; i < 1000000; ++i) {
    double const z = i < 640000 ? -1e-4 * i : -std::exp(log_of_z(rng));
    long double const exact = std::exp(static_cast<long double>(z));
    double const unit = std::nextafter(static_cast<double>(exact), 2.0) - static_cast<double>(exact);
    worst = std::max(worst, static_cast<double>(std::abs(exp_of_nonpositive(z) - exact)) / unit);
  }
  EXPECT_LE(worst, 1.5);
  EXPECT_GE(worst, 0.4) << "measured";
  EXPECT_EQ(exp_of_nonpositive(0), 1);
  EXPECT_EQ(exp_of_nonpositive(-0.0), 1);
  EXPECT_GT(exp_of_nonpositive(-64), 0);
  for (double z : {-64.0001, -1e300, -std::numeric_limits<double>::infinity()}) EXPECT_EQ(exp_of_nonpositive(z), 0);
}

TEST(TokenChoice, RanksAreInTheOrderOfLogitsAndIds) {
  std::vector<float> const rising{-kInf, -FLT_MAX, -1, -FLT_MIN, -1e-45F, 0, 1e-45F, 0.5F, 1, 3, FLT_MAX};
  for (std::size_t i = 0; i < rising.size(); ++i) {
    EXPECT_EQ(usable_logit(rising[i]), rising[i]);
    EXPECT_EQ(logit_of_rank(rank_of(rising[i], 7)), rising[i]);
    EXPECT_EQ(id_of_rank(rank_of(rising[i], 7)), 7U);
    EXPECT_GT(rank_of(rising[i], 7), rank_of(rising[i], 8));
    if (i > 0) {
      EXPECT_GT(rank_of(rising[i], 1000), rank_of(rising[i - 1], 0));
    }
  }
  EXPECT_GT(rank_of(-kInf, kMostTokens), 0U);
  EXPECT_EQ(usable_logit(kNaN), -kInf);
  EXPECT_EQ(usable_logit(kInf), FLT_MAX);
  EXPECT_EQ(rank_of(usable_logit(-0.0F), 3), rank_of(0, 3));
  for (float x : {kNaN, -kInf, -FLT_MAX}) EXPECT_EQ(usable_logit(x, -FLT_MAX), -FLT_MAX);
}

TEST(TokenChoice, WeightsAreWholeAndTheBestOneIsOne) {
  TokenWeights const weights{.largest = 3, .inverse_temperature = 2};
  EXPECT_EQ(weights.of(3), std::uint64_t{1} << 44);
  EXPECT_EQ(weights.of(2.5F), static_cast<std::uint64_t>(std::llround(std::exp(-1.0) * 0x1p44)));
  EXPECT_EQ(weights.of(-20), 0U);
  EXPECT_EQ(weights.of(-kInf), 0U);
  FineWeight const fine = fine_weight(-40, 0);
  EXPECT_EQ(fine.high, 0U);
  EXPECT_NEAR(static_cast<double>(fine.low) * 0x1p-88 / std::exp(-40.0), 1, 1e-8);
  EXPECT_EQ(drawn_weight(5, 0.999), 4U);
  EXPECT_EQ(drawn_weight((std::uint64_t{1} << 62) - 1, 1 - 0x1p-53), (std::uint64_t{1} << 62) - 512)
      << "rounded to a double, and not beyond";
}

}  // namespace
}  // namespace expertmesh
