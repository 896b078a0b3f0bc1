// Norms of a device within the bounds of right fp32 sums; a row's bits are a matter of that row.
#include <gtest/gtest.h>

#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

using reference::BoundedMatrix;
using reference::num_wrong;
using reference::random_matrix;
using reference::same_bits;

class DeviceNormTest : public EachDevice {};
EM_FOR_EACH_DEVICE(DeviceNormTest);

constexpr float kEpsilon = 1e-5F;

// Those that a warp, a block and the largest block has.
constexpr std::size_t kLengths[] = {1, 2, 3, 7, 31, 72, 128, 255, 256, 257, 1023, 2048, 2049, 2880, 5003};

std::vector<float> row_of(MatrixView<float const> m, std::size_t t = 0) {
  return {m.row(t), m.row(t) + m.cols};
}

TEST_P(DeviceNormTest, RmsNorm) {
  for (std::size_t n : kLengths)
    for (std::size_t rows : {1, 5, 33})
      for (Margins margins : kMargins)
        for (bool weighted : {false, true}) {
          if (rows > 5 && n > 300) continue;
          auto const x = random_matrix(rows, n, 1);
          auto const weight = weighted ? row_of(random_matrix(1, n, 2).view()) : std::vector<float>(n, 1);
          BoundedMatrix expected;
          for (std::size_t t = 0; t < rows; ++t)
            expected.push_back(reference::rms_norm(x.view().row(t), weight.data(), n, static_cast<double>(kEpsilon)));

          OnDevice<float> const on_device_weight(*device_, weight);
          std::span<float const> const w = weighted ? on_device_weight.span() : std::span<float const>{};
          DeviceMatrix const in(*device_, x.view(), margins);
          DeviceMatrix const out(*device_, Matrix<float>(rows, n).view(), {margins.after, margins.before});
          device_->rms_norm(in.view(), 1, w, kEpsilon, out.view());
          auto const normed = out.values();
          EXPECT_EQ(num_wrong(normed.view(), expected), 0U) << rows << " rows of " << n;
          EXPECT_TRUE(out.margins_are_untouched());
          device_->rms_norm(in.view(), 1, w, kEpsilon, in.view());  // in place
          EXPECT_TRUE(same_bits(in.values().view(), normed.view())) << n;
          EXPECT_TRUE(in.margins_are_untouched());
        }
}

TEST_P(DeviceNormTest, RmsNormOfHeadsIsRmsNormOfEachHead) {
  for (std::size_t d : {1, 7, 24, 64, 72, 128, 300})
    for (std::size_t heads : {1, 3, 8})
      for (Margins margins : kMargins) {
        auto const x = random_matrix(4, heads * d, 1);
        OnDevice<float> const weight(*device_, row_of(random_matrix(1, d, 2).view()));
        DeviceMatrix const wide(*device_, x.view(), margins);
        device_->rms_norm(wide.view(), heads, weight.span(), kEpsilon, wide.view());
        auto const normed = wide.values();
        EXPECT_TRUE(wide.margins_are_untouched());
        for (std::size_t h = 0; h < heads; ++h) {
          DeviceMatrix const head(*device_, x.view().columns(h * d, d));
          device_->rms_norm(head.view(), 1, weight.span(), kEpsilon, head.view());
          EXPECT_TRUE(same_bits(normed.view().columns(h * d, d), head.values().view())) << heads << " heads of " << d;
        }
      }
}

TEST_P(DeviceNormTest, LayerNorm) {
  for (std::size_t n : kLengths)
    for (Margins margins : kMargins)
      for (bool biased : {false, true}) {
        auto x = random_matrix(3, n, 1);
        for (std::size_t i = 0; i < n; ++i) x.view().row(1)[i] = 5 + x.view().row(1)[i] / 8;  // a mean far from 0
        auto const weight = row_of(random_matrix(1, n, 2).view());
        auto const bias = row_of(random_matrix(1, n, 3).view());
        BoundedMatrix expected;
        for (std::size_t t = 0; t < 3; ++t)
          expected.push_back(reference::layer_norm(x.view().row(t), weight.data(), biased ? bias.data() : nullptr, n,
                                                   static_cast<double>(kEpsilon)));

        OnDevice<float> const w(*device_, weight);
        OnDevice<float> const b(*device_, bias);
        std::span<float const> const bias_span = biased ? b.span() : std::span<float const>{};
        DeviceMatrix const in(*device_, x.view(), margins);
        DeviceMatrix const out(*device_, Matrix<float>(3, n).view(), {margins.after, margins.before});
        device_->layer_norm(in.view(), w.span(), bias_span, kEpsilon, out.view());
        auto const normed = out.values();
        EXPECT_EQ(num_wrong(normed.view(), expected), 0U) << n;
        EXPECT_TRUE(out.margins_are_untouched());
        device_->layer_norm(in.view(), w.span(), bias_span, kEpsilon, in.view());
        EXPECT_TRUE(same_bits(in.values().view(), normed.view())) << n;
      }
}

TEST_P(DeviceNormTest, ARowHasTheSameBitsInEveryBatchAndPlace) {
  for (std::size_t n : kLengths) {
    auto const x = random_matrix(9, n, 1);
    OnDevice<float> const weight(*device_, row_of(random_matrix(1, n, 2).view()));
    DeviceMatrix const all(*device_, x.view());
    device_->rms_norm(all.view(), 1, weight.span(), kEpsilon, all.view());
    auto const normed = all.values();
    for (Margins margins : kMargins)
      for (std::size_t t : {0, 4, 8}) {
        DeviceMatrix const alone(*device_, x.view().row_range(t, 1), margins);
        device_->rms_norm(alone.view(), 1, weight.span(), kEpsilon, alone.view());
        EXPECT_TRUE(same_bits(alone.values().view(), normed.view().row_range(t, 1))) << n;
      }
  }
}

}  // namespace
}  // namespace expertmesh
