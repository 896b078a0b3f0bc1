// int8 weights against what their format says, number by number: every ISA has exactly these bits.
#include <gtest/gtest.h>

#include <limits>

#include "common/kernels/linear.h"
#include "tests/unit/kernels/quantised.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::Quantised;
using reference::quantised;
using reference::random_matrix;
using reference::same_bits;
using reference::same_numbers;

Matrix<float> plain_linear(MatrixView<float const> x, MatrixView<float const> w) {
  Matrix<float> y(x.rows, w.rows);
  std::vector<Quantised> weights;
  for (std::size_t n = 0; n < w.rows; ++n) weights.push_back(quantised(w.row(n), w.cols));
  for (std::size_t m = 0; m < x.rows; ++m) {
    Quantised const row = quantised(x.row(m), x.cols);
    for (std::size_t n = 0; n < w.rows; ++n) {
      float sum = 0;
      for (std::size_t g = 0; g < row.scales.size(); ++g) {
        long products = 0;
        for (std::size_t k = g * reference::kInt8GroupSize; k < std::min(x.cols, (g + 1) * reference::kInt8GroupSize);
             ++k)
          products += static_cast<long>(row.whole[k]) * weights[n].whole[k];
        sum = std::fma(static_cast<float>(products), row.scales[g] * weights[n].scales[g], sum);
      }
      y.view().row(m)[n] = sum;
    }
  }
  return y;
}

Matrix<float> run(Exec const& exec, MatrixView<float const> x, MatrixView<float const> w) {
  Matrix<float> y(x.rows, w.rows);
  linear(exec, x, reference::packed(kInt8Weights, w), y.view());
  return y;
}

class Int8Test : public EachIsa {};
EM_FOR_EACH_ISA(Int8Test);

TEST_P(Int8Test, HasExactlyTheBitsThatTheFormatSays) {
  Rig rig(GetParam(), 2);
  for (std::size_t n : {1, 15, 16, 17, 33, 64, 81, 129})
    for (std::size_t k : {1, 3, 4, 5, 64, 127, 128, 129, 131, 192, 256, 300}) {
      auto const x = random_matrix(130, k, 1);
      auto const w = random_matrix(n, k, 2);
      auto const expected = plain_linear(x.view(), w.view());
      EXPECT_TRUE(same_bits(run(rig.exec, x.view(), w.view()).view(), expected.view())) << "N " << n << " K " << k;
    }
}

TEST_P(Int8Test, ForEveryNumberOfRowsAndThreads) {
  auto const x = random_matrix(65, 200, 1);
  auto const w = random_matrix(150, 200, 2);
  auto const packed = reference::packed(kInt8Weights, w.view());
  auto const expected = plain_linear(x.view(), w.view());
  for (std::size_t threads : {1, 2, 3}) {
    Rig rig(GetParam(), threads);
    for (std::size_t m = 1; m <= 65; ++m) {
      Matrix<float> y(m, 150);
      linear(rig.exec, x.view().row_range(65 - m, m), packed, y.view());
      EXPECT_TRUE(same_bits(y.view(), expected.view().row_range(65 - m, m))) << "M " << m << ", " << threads;
    }
  }
}

// Sums as large as they can be, of both signs, and groups of zeros, of one number, and too small to have a scale.
TEST_P(Int8Test, AtTheEdges) {
  Rig rig(GetParam());
  constexpr std::size_t kK = 300;
  constexpr float kHuge = 1e18F;
  Matrix<float> x(9, kK);
  Matrix<float> w(9, kK);
  for (Matrix<float>* matrix : {&x, &w})
    for (std::size_t i = 0; i < kK; ++i) {
      auto const at = [&](std::size_t row) -> float& { return matrix->view().row(row)[i]; };
      at(0) = 1;
      at(1) = -1;
      at(2) = i % 2 == 0 ? -kHuge : kHuge;
      at(3) = 0;
      at(4) = i % reference::kInt8GroupSize == 5 ? -3.0F : 0.0F;
      at(5) = i < reference::kInt8GroupSize ? 1e-31F : 1e-29F;
      at(6) = i < reference::kInt8GroupSize ? 0.0F : -0.25F * static_cast<float>(i % 7);
      at(7) = static_cast<float>(i) - 128;
      at(8) = i % 3 == 0 ? 127.0F : 0.5F + static_cast<float>(i % 100);  // halves: to even
    }
  auto const y = run(rig.exec, x.view(), w.view());
  EXPECT_TRUE(same_bits(y.view(), plain_linear(x.view(), w.view()).view()));
  EXPECT_FLOAT_EQ(y.view().row(0)[1], -300.0F);
  EXPECT_FLOAT_EQ(y.view().row(2)[2], 300 * kHuge * kHuge);
  for (std::size_t n = 0; n < 9; ++n) EXPECT_EQ(y.view().row(3)[n], 0.0F);
}

TEST_P(Int8Test, WhatIsNotFiniteStaysInItsRowAndColumn) {
  Rig rig(GetParam());
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()}) {
    auto x = random_matrix(6, 200, 1);
    auto w = random_matrix(20, 200, 2);
    x.view().row(2)[150] = bad;
    w.view().row(17)[3] = bad;
    auto const y = run(rig.exec, x.view(), w.view());
    EXPECT_TRUE(same_numbers(y.view(), plain_linear(x.view(), w.view()).view()));
    for (std::size_t m = 0; m < 6; ++m)
      for (std::size_t n = 0; n < 20; ++n)
        EXPECT_EQ(std::isnan(y.view().row(m)[n]), m == 2 || n == 17) << m << "," << n;
  }
}

TEST_P(Int8Test, IsCloseToBfloat16) {
  Rig rig(GetParam());
  auto const x = random_matrix(20, 256, 1);
  auto const w = random_matrix(100, 256, 2);
  Matrix<float> half(20, 100);
  linear(rig.exec, x.view(), reference::packed(kBfloat16Weights, w.view()), half.view());
  auto const y = run(rig.exec, x.view(), w.view());
  double error = 0;
  double size = 0;
  for (std::size_t i = 0; i < 20 * 100; ++i) {
    double const a = static_cast<double>(y.view().data[i]);
    double const b = static_cast<double>(half.view().data[i]);
    error += (a - b) * (a - b);
    size += b * b;
  }
  // Uniform in (-1, 1): each operand moves by 1 / (127 sqrt(12)) of 1 / sqrt(3), 0.4%, bfloat16's by a third of that.
  EXPECT_LT(std::sqrt(error / size), 0.01);
}

TEST(Int8Panels, LayoutIsAsTheHeaderSays) {
  constexpr std::size_t kN = 34;
  constexpr std::size_t kK = 130;
  auto const w = random_matrix(kN, kK, 3);
  PackedMatrix const packed = reference::packed(kInt8Weights, w.view());
  constexpr std::size_t kPanel = 2 * 128 + 33 * 128;  // two groups' scales, steps of four k
  ASSERT_EQ(packed.size_bytes(), 2 * kPanel);
  for (std::size_t n = 0; n < 64; ++n) {
    std::byte const* const panel = packed.data() + n / 32 * kPanel;
    Quantised const row = n < kN ? quantised(w.view().row(n), kK) : Quantised{{0, 0}, {}};
    for (std::size_t g = 0; g < 2; ++g) {
      std::byte const* const block = panel + g * (128 + 32 * 128);
      EXPECT_EQ(reinterpret_cast<float const*>(block)[n % 32], row.scales[g]);
      for (std::size_t k = g * reference::kInt8GroupSize;
           n < kN && k < std::min(kK, (g + 1) * reference::kInt8GroupSize); ++k) {
        std::size_t const in_group = k - g * reference::kInt8GroupSize;
        EXPECT_EQ(static_cast<int>(block[128 + in_group / 4 * 128 + n % 32 * 4 + in_group % 4]), row.whole[k] + 128);
      }
    }
  }
}

}  // namespace
}  // namespace expertmesh
