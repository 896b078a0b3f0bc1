#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/checkpoint/weight_source.h"

namespace expertmesh {
namespace {

std::array<std::size_t, 2> const kMatrix = {200, 400};

std::vector<float> numbers(std::uint64_t seed, char const* name, std::span<std::size_t const> shape) {
  auto const source = make_dummy_weights(seed);
  StoredTensor const tensor = source->load(name, shape);
  EXPECT_EQ(tensor.dtype, DType::bf16);
  EXPECT_TRUE(std::ranges::equal(tensor.shape, shape));
  return to_floats(tensor);
}

TEST(DummyWeights, ArePureFunctionsOfSeedNameAndIndex) {
  auto const once = numbers(7, "a.weight", kMatrix);
  EXPECT_EQ(once, numbers(7, "a.weight", kMatrix));
  EXPECT_NE(once, numbers(8, "a.weight", kMatrix));
  EXPECT_NE(once, numbers(7, "b.weight", kMatrix));
  auto const fewer_rows = numbers(7, "a.weight", std::array<std::size_t, 2>{3, 400});
  EXPECT_TRUE(std::equal(fewer_rows.begin(), fewer_rows.end(), once.begin()));
}

TEST(DummyWeights, MatricesAreNormalWithTheirWidthsDeviation) {
  auto const x = numbers(1, "a.weight", kMatrix);
  double sum = 0;
  double squares = 0;
  double fourths = 0;
  std::size_t within = 0;  // one deviation: 68.3 % of a normal
  for (float v : x) {
    double const z = static_cast<double>(v) * std::sqrt(400.0);
    sum += z;
    squares += z * z;
    fourths += z * z * z * z;
    within += std::abs(z) < 1 ? 1 : 0;
  }
  auto const n = static_cast<double>(x.size());
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourths / n, 2.7, 0.1);  // 3 - 6/5/4: the kurtosis of four uniform numbers
  EXPECT_NEAR(static_cast<double>(within) / n, 0.68, 0.02);
}

TEST(DummyWeights, VectorsAreOnesWithSmallNoise) {
  auto const x = numbers(1, "norm.weight", std::array<std::size_t, 1>{5000});
  double sum = 0;
  for (float v : x) {
    EXPECT_GT(v, 0.5F);
    EXPECT_LT(v, 1.5F);
    sum += static_cast<double>(v);
  }
  EXPECT_NEAR(sum / 5000, 1, 0.01);
}

TEST(DummyWeights, VerifyAcceptsAnything) {
  make_dummy_weights(0)->verify({.required = {{"a", {1}}}, .optional = {}, .skipped_prefixes = {}});
}

}  // namespace
}  // namespace expertmesh
