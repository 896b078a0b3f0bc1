// linear() and headwise_linear() of a device against double precision; a row's bits are its own.
#include "common/kernels/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/kernels/headwise_linear.h"
#include "tests/unit/device/weight_on_device.h"

namespace expertmesh {
namespace {

using reference::num_wrong;
using reference::random_matrix;
using reference::same_bits;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr WeightFormat kUnrounded{.storage = DType::bf16};  // activations are float32

class DeviceLinearTest : public EachDevice {
 protected:
  // y of x, on the device, where y held something else.
  Matrix<float> linear_of(MatrixView<float const> x, DeviceWeight const& w, std::span<float const> bias = {},
                          Margins margins = {}) {
    DeviceMatrix const in(*device_, x, margins);
    DeviceMatrix const out(*device_, filled(x.rows, w.n, kNaN).view(), {margins.after, margins.before});
    device_->linear(in.view(), w, bias, out.view());
    EXPECT_TRUE(out.margins_are_untouched());
    return out.values();
  }
};
EM_FOR_EACH_DEVICE(DeviceLinearTest);

// The matrices are at the ends of their memory: nothing behind K is read.
TEST_P(DeviceLinearTest, EqualsTheReference) {
  struct Size {
    std::size_t n, k;
  };
  for (WeightFormat const& format : kDeviceFormats)
    for (Size const size : {Size{1, 1}, {20, 3}, {8, 16}, {301, 72}, {33, 257}, {180, 1100}, {5, 2880}})
      for (std::size_t m : {1, 2, 3, 5, 8, 9, 33}) {
        auto const x = random_matrix(m, size.k, 1);
        auto const w = random_matrix(size.n, size.k, 2);
        WeightOnDevice const on_device(*device_, w.view(), format);
        auto const y = linear_of(x.view(), on_device.weight());
        EXPECT_EQ(num_wrong(y.view(), reference::linear(x.view(), w.view(), format)), 0U)
            << name_of(format.storage) << " rounds " << static_cast<int>(format.activation) << " M " << m << " N "
            << size.n << " K " << size.k;
      }
}

// As many as take the tiles for many rows: N and M are whole tiles, and a little less and more.
TEST_P(DeviceLinearTest, ManyRowsEqualTheReference) {
  struct Size {
    std::size_t m, n, k;
  };
  for (WeightFormat const& format : {kBfloat16Weights, kUnrounded})
    for (Size const size :
         {Size{65, 301, 72}, {17, 640, 300}, {128, 640, 16}, {129, 300, 130}, {140, 129, 33}, {257, 200, 160}}) {
      auto const x = random_matrix(size.m, size.k, 1);
      auto const w = random_matrix(size.n, size.k, 2);
      WeightOnDevice const on_device(*device_, w.view(), format);
      auto const y = linear_of(x.view(), on_device.weight());
      EXPECT_EQ(num_wrong(y.view(), reference::linear(x.view(), w.view(), format)), 0U)
          << "rounds " << static_cast<int>(format.activation) << " M " << size.m << " N " << size.n << " K " << size.k;
    }
}

// More of x than a block's shared memory has room for, whether there are few rows or many.
TEST_P(DeviceLinearTest, LongRowsEqualTheReference) {
  struct Size {
    std::size_t m, k;
  };
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kUnrounded})
    for (Size const size : {Size{1, 29700}, {1, 60001}, {2, 18432}, {4, 18432}, {7, 9000}}) {
      auto const x = random_matrix(size.m, size.k, 1);
      auto const w = random_matrix(9, size.k, 2);
      WeightOnDevice const on_device(*device_, w.view(), format);
      auto const y = linear_of(x.view(), on_device.weight());
      EXPECT_EQ(num_wrong(y.view(), reference::linear(x.view(), w.view(), format)), 0U)
          << name_of(format.storage) << " M " << size.m << " K " << size.k;
    }
}

TEST_P(DeviceLinearTest, RowsMayLieAnyhow) {
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights})
    for (Margins const margins : kMargins)
      for (std::size_t m : {1, 5}) {
        auto const x = random_matrix(m, 300, 1);
        WeightOnDevice const w(*device_, random_matrix(19, 300, 2).view(), format);
        EXPECT_TRUE(
            same_bits(linear_of(x.view(), w.weight(), {}, margins).view(), linear_of(x.view(), w.weight()).view()))
            << name_of(format.storage) << " M " << m << " margin " << margins.before;
      }
}

TEST_P(DeviceLinearTest, NoRowsAreNothing) {
  WeightOnDevice const w(*device_, random_matrix(5, 7, 1).view(), kBfloat16Weights);
  OnDevice<float> const memory(*device_, {1, 2, 3});
  device_->linear({memory.data(), 0, 7}, w.weight(), {}, {memory.data(), 0, 5});
  EXPECT_EQ(memory.values(), (std::vector<float>{1, 2, 3}));
}

TEST_P(DeviceLinearTest, AWeightOfTheWrongSignIsNoticed) {
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights}) {
    auto const x = random_matrix(3, 129, 1);
    auto w = random_matrix(20, 129, 2);
    auto const expected = reference::linear(x.view(), w.view(), format);
    for (std::size_t k : {0, 1, 64, 128}) {
      w.view().row(17)[k] *= -1;
      WeightOnDevice const on_device(*device_, w.view(), format);
      EXPECT_EQ(num_wrong(linear_of(x.view(), on_device.weight()).view(), expected), 3U) << "k " << k;
      w.view().row(17)[k] *= -1;
    }
  }
}

TEST_P(DeviceLinearTest, ARowHasTheSameBitsAloneAndInABatch) {
  struct Size {
    std::size_t m, n, k;
  };
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights})
    for (Size const size : {Size{130, 45, 300}, {19, 5, 9000}}) {
      auto const x = random_matrix(size.m, size.k, 3);
      WeightOnDevice const w(*device_, random_matrix(size.n, size.k, 4).view(), format);
      auto const whole = linear_of(x.view(), w.weight());
      for (std::size_t first = 0, rows = 1; first < size.m; first += rows, rows = 1 + rows % 9) {
        std::size_t const count = std::min(rows, size.m - first);
        auto const part = linear_of(x.view().row_range(first, count), w.weight());
        EXPECT_TRUE(same_bits(part.view(), whole.view().row_range(first, count)))
            << name_of(format.storage) << " K " << size.k << ", " << count << " rows from " << first;
      }
    }
}

// On both sides of every border between the shapes that kernels choose by the number of rows and of outputs.
TEST_P(DeviceLinearTest, ARowHasTheSameBitsInBatchesOfEverySize) {
  constexpr std::size_t kRows = 300;
  struct Size {
    std::size_t n, k;
  };
  for (WeightFormat const& format : kDeviceFormats)
    for (Size const size : {Size{300, 200}, {520, 40}, {20, 330}}) {
      if (test::kFewCases && size.n != 20) continue;
      auto const x = random_matrix(kRows, size.k, 3);
      WeightOnDevice const w(*device_, random_matrix(size.n, size.k, 4).view(), format);
      auto const whole = linear_of(x.view(), w.weight());
      for (std::size_t rows : {1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 128, 129}) {
        auto const last = linear_of(x.view().row_range(kRows - rows, rows), w.weight());
        EXPECT_TRUE(same_bits(last.view(), whole.view().row_range(kRows - rows, rows)))
            << name_of(format.storage) << " rounds " << static_cast<int>(format.activation) << " N " << size.n << ", "
            << rows << " rows";
      }
    }
}

// Nor on what the others are: a row of NaN stays alone, and one with an infinity.
TEST_P(DeviceLinearTest, ARowDoesNotSeeTheOthers) {
  constexpr std::size_t kK = 72;
  struct Size {
    std::size_t m, n;
  };
  for (WeightFormat const& format : {kBfloat16Weights, kUnrounded})
    for (Size const size : {Size{9, 20}, {9, 100}, {140, 300}}) {
      if (test::kFewCases && size.m != 9) continue;
      auto x = random_matrix(size.m, kK, 3);
      auto const plain = random_matrix(size.n, kK, 4);
      WeightOnDevice const w(*device_, plain.view(), format);
      auto const before = linear_of(x.view(), w.weight());
      std::fill_n(x.view().row(4), kK, kNaN);
      x.view().row(6)[50] = -kInfinity;
      auto const after = linear_of(x.view(), w.weight());
      for (std::size_t m = 0; m < size.m; ++m)
        if (m != 4 && m != 6) {
          EXPECT_TRUE(same_bits(after.view().row_range(m, 1), before.view().row_range(m, 1))) << "M " << size.m;
        }
      for (std::size_t n = 0; n < size.n; ++n) {
        EXPECT_TRUE(std::isnan(after.view().row(4)[n])) << "M " << size.m;
        EXPECT_EQ(after.view().row(6)[n], plain.view().row(n)[50] > 0 ? -kInfinity : kInfinity) << "M " << size.m;
      }
    }
}

// All 24 bits of x count, whatever its size, where it is not rounded.
TEST_P(DeviceLinearTest, AOneAsAWeightGivesXItself) {
  constexpr float kMost = std::numeric_limits<float>::max();
  std::vector<float> numbers{
      0,         1,         -1,    1 + 0x1p-23F, -0x1.fffffep0F, 0x1.000102p-100F, 0x1.fffffep-109F,
      0x1p-126F, 0x1p-133F, kMost, -kMost,       kInfinity,      -kInfinity,       kNaN};
  auto const more = random_matrix(1, 300 - numbers.size(), 1);
  for (std::size_t i = 0; i < more.view().cols; ++i)
    numbers.push_back(std::ldexp(more.view().data[i], static_cast<int>(i % 220) - 100));
  auto const ones = filled(150, 1, 1);
  for (WeightFormat const& format : {kFloat32Weights, kUnrounded}) {
    WeightOnDevice const w(*device_, ones.view(), format);
    for (std::size_t m : {8UL, 40UL, numbers.size()})
      for (std::size_t first = 0; first + m <= numbers.size(); first += m) {
        auto const y = linear_of({numbers.data() + first, m, 1}, w.weight());
        for (std::size_t i = 0; i < m * ones.view().rows; ++i) {
          float const x = numbers[first + i / ones.view().rows];
          float const is = y.view().data[i];
          ASSERT_TRUE(is == x || (std::isnan(x) && std::isnan(is))) << x << " became " << is << ", M " << m;
        }
      }
  }
}

// Errors do not add up as K grows: sums of positive numbers.
TEST_P(DeviceLinearTest, LongSumsAreAsGoodAsFloat32) {
  constexpr std::size_t kK = 29700;
  auto x = random_matrix(9, kK, 1);
  auto w = random_matrix(40, kK, 2);
  for (std::size_t i = 0; i < 9 * kK; ++i) x.view().data[i] = std::abs(x.view().data[i]);
  for (std::size_t i = 0; i < 40 * kK; ++i) w.view().data[i] = std::abs(w.view().data[i]);
  auto const expected = reference::linear(x.view(), w.view(), kUnrounded);
  WeightOnDevice const on_device(*device_, w.view(), kUnrounded);
  for (std::size_t rows : {1, 9}) {
    auto const y = linear_of(x.view().first_rows(rows), on_device.weight());
    for (std::size_t m = 0; m < rows; ++m)
      for (std::size_t n = 0; n < 40; ++n)
        EXPECT_NEAR(y.view().row(m)[n] / expected[m][n].value, 1, 4e-6) << rows << " rows";
  }
}

TEST_P(DeviceLinearTest, TheBiasIsAddedToTheFinishedSum) {
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights})
    for (std::size_t m : {1, 3, 9})
      for (std::size_t n : {1, 33, 72}) {
        auto const x = random_matrix(m, 33, 1);
        auto const b = random_matrix(1, n, 3);
        WeightOnDevice const w(*device_, random_matrix(n, 33, 2).view(), format);
        OnDevice<float> const bias(*device_, {b.view().data, b.view().data + n});
        auto expected = linear_of(x.view(), w.weight());
        for (std::size_t i = 0; i < m * n; ++i) expected.view().data[i] += b.view().data[i % n];
        EXPECT_TRUE(same_bits(linear_of(x.view(), w.weight(), bias.span()).view(), expected.view()))
            << "M " << m << " N " << n;
      }
}

// Columns of a head, and between heads, are where they belong; more heads than a kernel's arguments hold.
TEST_P(DeviceLinearTest, AHeadIsALinearOfItsColumns) {
  struct Size {
    std::size_t heads, n, k;
  };
  constexpr std::size_t kGap = 3;
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights})
    for (Size const size : {Size{1, 9, 33}, {3, 40, 129}, {5, 128, 160}, {301, 2, 5}})
      for (std::size_t m : {1, 2, 11}) {
        HeadColumns const columns{.x_stride = size.k + kGap, .y_stride = size.n + kGap};
        auto const x = random_matrix(m, size.heads * columns.x_stride - kGap, 1);
        std::vector<std::unique_ptr<WeightOnDevice>> memory;
        for (std::size_t i = 0; i < std::min(size.heads, std::size_t{7}); ++i)
          memory.push_back(
              std::make_unique<WeightOnDevice>(*device_, random_matrix(size.n, size.k, 2 + i).view(), format));
        std::vector<DeviceWeight> weights;
        for (std::size_t h = 0; h < size.heads; ++h) weights.push_back(memory[h % memory.size()]->weight());
        auto const blank = filled(m, size.heads * columns.y_stride - kGap, -5);
        DeviceMatrix const in(*device_, x.view());
        DeviceMatrix const out(*device_, blank.view());
        device_->headwise_linear(in.view(), weights, columns, out.view());
        auto const y = out.values();
        std::size_t wrong = 0;
        for (std::size_t h = 0; h < size.heads; ++h) {
          if (size.heads < 10 || h % 50 == 0 || h > 254) {
            auto const alone = linear_of(x.view().columns(h * columns.x_stride, size.k), weights[h]);
            wrong += same_bits(y.view().columns(h * columns.y_stride, size.n), alone.view()) ? 0 : 1;
          }
          if (h + 1 < size.heads)
            wrong +=
                same_bits(y.view().columns(h * columns.y_stride + size.n, kGap), blank.view().columns(0, kGap)) ? 0 : 1;
        }
        EXPECT_EQ(wrong, 0U) << size.heads << " heads [" << size.n << "," << size.k << "], M " << m;
      }
}

}  // namespace
}  // namespace expertmesh
