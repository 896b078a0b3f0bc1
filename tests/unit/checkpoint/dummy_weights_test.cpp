#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "common/checkpoint/weight_reader.h"

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

TEST(DummyWeights, BiasesAreSmallNoise) {
  auto const x = numbers(1, "q_proj.bias", std::array<std::size_t, 1>{5000});
  double sum = 0;
  for (float v : x) {
    EXPECT_LT(std::abs(v), 0.5F);
    sum += static_cast<double>(v);
  }
  EXPECT_NEAR(sum / 5000, 0, 0.01);
}

std::vector<float> weight(WeightSlice const& slice, std::size_t rows, std::size_t k) {
  auto const source = make_dummy_weights(3);
  std::vector<float> out;
  WeightReader(*source).read(slice, rows, k, [&](WeightRows const& part) {
    EXPECT_EQ(part.type, DType::f32);
    auto const* numbers = reinterpret_cast<float const*>(part.data);
    out.insert(out.end(), numbers, numbers + part.count * k);
  });
  return out;
}

// From a config alone a quantised model has to run like one of plain numbers.
TEST(DummyWeights, QuantisedOnesAreFiniteAndHaveTheirWidthsDeviation) {
  for (WeightStorage const storage : {WeightStorage::fp8_blocks, WeightStorage::mxfp4})
    for (std::size_t k : {32, 96, 2880, 7168}) {
      std::size_t const rows = 400000 / k;
      auto const x = weight({.name = "a.weight", .stack = 4, .index = 3, .storage = storage}, rows, k);
      double sum = 0;
      double squares = 0;
      std::set<float> distinct;
      for (float v : x) {
        ASSERT_TRUE(std::isfinite(v));
        double const z = static_cast<double>(v) * std::sqrt(static_cast<double>(k));
        sum += z;
        squares += z * z;
        distinct.insert(v);
      }
      auto const n = static_cast<double>(x.size());
      EXPECT_NEAR(sum / n, 0, 0.02) << k;
      EXPECT_NEAR(squares / n, 1, 0.2) << k;  // few scales: their own noise
      EXPECT_GT(distinct.size(), 15U) << k;
    }
}

TEST(DummyWeights, IntegersAndFloatsWithOtherScalesAreFiniteAndHaveTheirWidthsDeviation) {
  std::vector<WeightSlice> forms;
  for (std::size_t const group_size : {0, 128}) {
    for (ZeroPoints const zeros : {ZeroPoints::middle, ZeroPoints::stored})
      for (auto const& [layout, bits] : {std::pair(IntegerLayout::gptq, 4),
                                         {IntegerLayout::gptq, 8},
                                         {IntegerLayout::awq, 4},
                                         {IntegerLayout::packed, 4},
                                         {IntegerLayout::packed, 8},
                                         {IntegerLayout::bytes, 8}})
        forms.push_back({.name = "a",
                         .storage = WeightStorage::integers,
                         .integers = {.layout = layout,
                                      .bits = static_cast<std::size_t>(bits),
                                      .group_size = group_size,
                                      .zero_points = zeros,
                                      .has_group_index = layout != IntegerLayout::awq}});
    forms.push_back(
        {.name = "a.weight", .storage = WeightStorage::fp8_scaled, .block_rows = 1, .block_columns = group_size});
  }
  for (WeightSlice const& form : forms)
    for (std::size_t k : {96, 2880}) {
      std::size_t const rows = 200000 / k;
      auto const x = weight(form, rows, k);
      double squares = 0;
      for (float v : x) {
        ASSERT_TRUE(std::isfinite(v)) << form_of(form);
        squares += static_cast<double>(v) * static_cast<double>(v) * static_cast<double>(k);
      }
      EXPECT_NEAR(squares / static_cast<double>(x.size()), 1, 0.2) << form_of(form) << " " << k;
    }
}

TEST(DummyWeights, AnEntryIsTheSameAloneAndInItsStack) {
  auto const source = make_dummy_weights(3);
  for (TensorInfo const& info :
       {TensorInfo{"a", {3, 5, 7}}, TensorInfo{"a.bias", {3, 7}}, TensorInfo{"a", {3, 5, 7}, TensorKind::fp8},
        TensorInfo{"a_scale_inv", {3, 5, 7}}, TensorInfo{"a_blocks", {3, 2, 2, 16}, TensorKind::bytes},
        TensorInfo{"a_scales", {3, 2, 2}, TensorKind::bytes}}) {
    StoredTensor const whole = source->load(info);
    EXPECT_EQ(whole.shape, info.shape);
    EXPECT_TRUE(is_of(whole.dtype, info.kind));
    for (std::size_t e = 0; e < 3; ++e) {
      StoredTensor const entry = source->load_entry(info, e);
      EXPECT_EQ(entry.shape, std::vector<std::size_t>(info.shape.begin() + 1, info.shape.end()));
      ASSERT_EQ(entry.bytes.size() * 3, whole.bytes.size());
      EXPECT_TRUE(std::ranges::equal(entry.bytes, whole.bytes.subspan(e * entry.bytes.size(), entry.bytes.size())))
          << info.name << " " << e;
    }
  }
}

// Machines of one group make them each for itself, with the instructions they have: what one with AVX2 made.
TEST(DummyWeights, AreTheSameOnEveryMachine) {
  auto const source = make_dummy_weights(5);
  auto const hash_of = [&](TensorInfo const& info) {  // FNV-1a
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (std::byte b : source->load(info).bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3U;
    return hash;
  };
  EXPECT_EQ(hash_of({"a.weight", {37, 129}}), 2300511745948396712U);
  EXPECT_EQ(hash_of({"a.weight", {37, 129}, TensorKind::fp8}), 438657634330861993U);
  EXPECT_EQ(hash_of({"a_scales", {37, 129}, TensorKind::bytes}), 12191851462777835838U);
}

TEST(DummyWeights, VerifyAcceptsAnything) {
  make_dummy_weights(0)->verify({.required = {{"a", {1}}}, .optional = {}, .skipped_prefixes = {}});
}

}  // namespace
}  // namespace expertmesh
