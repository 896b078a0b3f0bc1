#include "common/base/counter_rng.h"

#include <gtest/gtest.h>

#include <set>

namespace expertmesh {
namespace {

TEST(CounterRng, EveryFieldOfTheKeyAndTheDrawCount) {
  RngKey const key{.seed = 1};
  std::set<std::uint64_t> bits = {random_bits(key), random_bits(key, 1)};
  auto const with = [&](auto member) {
    RngKey changed = key;
    changed.*member = static_cast<std::remove_reference_t<decltype(changed.*member)>>(2);
    bits.insert(random_bits(changed));
  };
  with(&RngKey::seed);
  with(&RngKey::choice);
  with(&RngKey::position);
  with(&RngKey::purpose);
  with(&RngKey::layer);
  with(&RngKey::expert);
  EXPECT_EQ(bits.size(), 8U);
  EXPECT_EQ(random_bits(key), random_bits(RngKey{.seed = 1}));
}

TEST(CounterRng, UniformAndNormalHaveTheirMoments) {
  constexpr int kCount = 20000;
  double uniform = 0, normal = 0, square = 0;
  for (int i = 0; i < kCount; ++i) {
    RngKey const key{.seed = 7, .position = static_cast<std::uint32_t>(i)};
    double const u = random_uniform(key);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    double const z = random_normal(key);
    uniform += u;
    normal += z;
    square += z * z;
  }
  // Five standard deviations of each mean; the numbers are the same in every run.
  EXPECT_NEAR(uniform / kCount, 0.5, 5 * 0.2887 / 141.4);
  EXPECT_NEAR(normal / kCount, 0.0, 5 / 141.4);
  EXPECT_NEAR(square / kCount, 1.0, 5 * 1.4142 / 141.4);
}

}  // namespace
}  // namespace expertmesh
