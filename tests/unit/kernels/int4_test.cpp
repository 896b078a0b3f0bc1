// int4 weights: what a group becomes, where it lies, and products of it that have the same bits in every ISA.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "common/base/bf16.h"
#include "common/kernels/linear.h"
#include "tests/unit/kernels/quantised.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::Quantised;
using reference::random_matrix;
using reference::same_bits;
using reference::same_numbers;

constexpr std::size_t kGroup = kInt4Weights.group_size;
constexpr std::size_t kBlock = 64 + 4 * 128;  // 32 scales, four steps of eight k

// Row n of a packed matrix, read as the header says that it lies.
Quantised unpacked(PackedMatrix const& w, std::size_t n) {
  std::size_t const groups = (w.k() + kGroup - 1) / kGroup;
  std::byte const* const panel = w.data() + n / 32 * groups * kBlock;
  Quantised out;
  for (std::size_t g = 0; g < groups; ++g) {
    std::byte const* const block = panel + g * kBlock;
    out.scales.push_back(to_float(reinterpret_cast<bf16 const*>(block)[n % 32]));
    for (std::size_t k = 0; k < std::min(kGroup, w.k() - g * kGroup); ++k) {
      auto const both = static_cast<unsigned>(block[64 + k / 8 * 128 + n % 32 * 4 + k % 4]);
      out.whole.push_back(static_cast<int>(k % 8 < 4 ? both & 15U : both >> 4U) - 8);
    }
  }
  return out;
}

Matrix<float> plain_linear(MatrixView<float const> x, PackedMatrix const& w) {
  Matrix<float> y(x.rows, w.n());
  for (std::size_t n = 0; n < w.n(); ++n) {
    Quantised const weights = unpacked(w, n);
    for (std::size_t m = 0; m < x.rows; ++m) {
      Quantised const row = reference::quantised(x.row(m), x.cols);
      float sum = 0;
      float of_row_group = 0;
      for (std::size_t g = 0; g < weights.scales.size(); ++g) {
        long products = 0;
        for (std::size_t k = g * kGroup; k < std::min(x.cols, (g + 1) * kGroup); ++k)
          products += static_cast<long>(row.whole[k]) * weights.whole[k];
        of_row_group = std::fma(static_cast<float>(products), weights.scales[g], of_row_group);
        bool const more = g + 1 < weights.scales.size() && (g + 1) * kGroup % reference::kInt8GroupSize != 0;
        if (more) continue;
        sum = std::fma(of_row_group, row.scales[g * kGroup / reference::kInt8GroupSize], sum);
        of_row_group = 0;
      }
      y.view().row(m)[n] = sum;
    }
  }
  return y;
}

Matrix<float> run(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w) {
  Matrix<float> y(x.rows, w.n());
  linear(exec, x, w, y.view());
  return y;
}

class Int4Test : public EachIsa {};
EM_FOR_EACH_ISA(Int4Test);

TEST_P(Int4Test, HasExactlyTheBitsThatTheFormatSays) {
  Rig rig(GetParam(), 2);
  for (std::size_t n : {1, 15, 16, 17, 33, 64, 81, 129})
    for (std::size_t k : {1, 3, 5, 8, 31, 32, 33, 64, 100, 128, 129, 160, 192, 256, 300}) {
      auto const x = random_matrix(70, k, 1);
      PackedMatrix const w = reference::packed(kInt4Weights, random_matrix(n, k, 2).view());
      EXPECT_TRUE(same_bits(run(rig.exec, x.view(), w).view(), plain_linear(x.view(), w).view()))
          << "N " << n << " K " << k;
    }
}

TEST_P(Int4Test, ForEveryNumberOfRowsAndThreads) {
  auto const x = random_matrix(65, 200, 1);
  auto const w = reference::packed(kInt4Weights, random_matrix(150, 200, 2).view());
  auto const expected = plain_linear(x.view(), w);
  for (std::size_t threads : {1, 2, 3}) {
    Rig rig(GetParam(), threads);
    for (std::size_t m = 1; m <= 65; ++m)
      EXPECT_TRUE(
          same_bits(run(rig.exec, x.view().row_range(65 - m, m), w).view(), expected.view().row_range(65 - m, m)))
          << "M " << m << ", " << threads;
  }
}

// Sums as large as they can be, of both signs: all numbers at an end of their range.
TEST_P(Int4Test, TheLargestSums) {
  Rig rig(GetParam());
  constexpr std::size_t kK = 160;
  Matrix<float> x(4, kK);
  Matrix<float> w(4, kK);
  for (std::size_t i = 0; i < kK; ++i) {
    float const alternating = i % 2 == 0 ? 1.0F : -1.0F;
    for (auto const& [row, value] : {std::pair<std::size_t, float>{0, 1.0F}, {1, -1.0F}, {2, alternating}, {3, 0.0F}})
      x.view().row(row)[i] = value;
    bool const end = i % kGroup == 0;
    w.view().row(0)[i] = end ? -8 : 7;  // 7: as large as an unsigned half of a byte is
    w.view().row(1)[i] = -8;
    w.view().row(2)[i] = end ? -8.0F : 7 * alternating;
    w.view().row(3)[i] = 0;
  }
  PackedMatrix const packed = reference::packed(kInt4Weights, w.view());
  Quantised const row = unpacked(packed, 0);
  EXPECT_EQ(std::ranges::count(row.whole, 7), kK - kK / kGroup);
  auto const y = run(rig.exec, x.view(), packed);
  EXPECT_TRUE(same_bits(y.view(), plain_linear(x.view(), packed).view()));
  EXPECT_FLOAT_EQ(y.view().row(0)[0], 5 * (31 * 7 - 8));
  EXPECT_FLOAT_EQ(y.view().row(1)[0], -5 * (31 * 7 - 8));
  EXPECT_FLOAT_EQ(y.view().row(0)[1], -8.0F * kK);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(y.view().row(i)[3], 0.0F);
    EXPECT_EQ(y.view().row(3)[i], 0.0F);
  }
}

TEST_P(Int4Test, WhatIsNotFiniteStaysInItsRowAndColumn) {
  Rig rig(GetParam());
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()}) {
    auto x = random_matrix(6, 200, 1);
    auto w = random_matrix(20, 200, 2);
    x.view().row(2)[150] = bad;
    w.view().row(17)[3] = bad;
    PackedMatrix const packed = reference::packed(kInt4Weights, w.view());
    auto const y = run(rig.exec, x.view(), packed);
    EXPECT_TRUE(same_numbers(y.view(), plain_linear(x.view(), packed).view()));
    for (std::size_t m = 0; m < 6; ++m)
      for (std::size_t n = 0; n < 20; ++n)
        EXPECT_EQ(std::isnan(y.view().row(m)[n]), m == 2 || n == 17) << m << "," << n;
  }
}

// Sum of squares that `whole` times the scale is from the numbers.
double squared_error(float const* x, std::size_t count, float scale, int const* whole) {
  double error = 0;
  for (std::size_t i = 0; i < count; ++i) {
    double const d = static_cast<double>(x[i]) - static_cast<double>(scale) * whole[i];
    error += d * d;
  }
  return error;
}

// Never worse than the largest number at -8, and the whole numbers are the nearest ones for the scale.
TEST(Int4Group, IsNearToItsNumbers) {
  constexpr std::size_t kK = 300;
  auto const numbers = random_matrix(40, kK, 5);
  PackedMatrix const packed = reference::packed(kInt4Weights, numbers.view());
  double all = 0;
  double plain = 0;
  for (std::size_t n = 0; n < 40; ++n) {
    Quantised const row = unpacked(packed, n);
    float const* const x = numbers.view().row(n);
    for (std::size_t g = 0; g < row.scales.size(); ++g) {
      std::size_t const count = std::min(kGroup, kK - g * kGroup);
      float const* const group = x + g * kGroup;
      int const* const whole = row.whole.data() + g * kGroup;
      for (std::size_t i = 0; i < count; ++i) {
        double const place = static_cast<double>(group[i]) / static_cast<double>(row.scales[g]);
        EXPECT_LE(std::abs(std::clamp(place, -8.0, 7.0) - whole[i]), 0.5001);
      }
      float const m = *std::ranges::max_element(std::span(group, count), {}, [](float v) { return std::abs(v); });
      float const step = to_float(to_bf16(m / -8));
      std::vector<int> simple;
      for (std::size_t i = 0; i < count; ++i)
        simple.push_back(std::clamp(static_cast<int>(std::nearbyint(group[i] / step)), -8, 7));
      double const error = squared_error(group, count, row.scales[g], whole);
      double const bound = squared_error(group, count, step, simple.data());
      EXPECT_LE(error, bound * 1.05) << "row " << n << ", group " << g;  // bfloat16 moves a scale by up to 0.2%
      all += error;
      plain += bound;
    }
  }
  EXPECT_LT(all, 0.95 * plain);
}

TEST(Int4Group, WithoutNumbersOfAnySize) {
  Matrix<float> w(3, 64);
  for (std::size_t i = 0; i < 64; ++i) {
    w.view().row(1)[i] = 1e-31F;
    w.view().row(2)[i] = i < 32 ? 0.0F : 1e-29F;
  }
  PackedMatrix const packed = reference::packed(kInt4Weights, w.view());
  for (std::size_t n : {0, 1, 2}) {
    Quantised const row = unpacked(packed, n);
    EXPECT_EQ(row.scales[0], 0.0F);
    EXPECT_EQ(row.whole[5], 0);
    if (n == 2) {
      EXPECT_NEAR(row.scales[1] * static_cast<float>(row.whole[40]), 1e-29F, 1e-31F);
    } else {
      EXPECT_EQ(row.scales[1], 0.0F);
    }
  }
}

TEST(Int4Panels, APanelIsWholeGroups) {
  EXPECT_EQ(packed_bytes(kInt4Weights, 34, 33), 2 * 2 * kBlock);
  EXPECT_EQ(packed_bytes(kInt4Weights, 32, 32), kBlock);
  PackedMatrix const packed = reference::packed(kInt4Weights, random_matrix(34, 33, 3).view());
  ASSERT_EQ(packed.size_bytes(), 4 * kBlock);
  // Padding columns have no scale, so that whatever meets them is 0.
  for (std::size_t n = 34; n < 64; ++n)
    EXPECT_EQ(reinterpret_cast<bf16 const*>(packed.data() + 2 * kBlock)[n % 32].bits, 0U) << n;
}

}  // namespace
}  // namespace expertmesh
