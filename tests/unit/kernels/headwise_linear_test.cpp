#include "common/kernels/headwise_linear.h"

#include <gtest/gtest.h>

#include "common/kernels/linear.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

class HeadwiseLinearTest : public EachIsa {};
EM_FOR_EACH_ISA(HeadwiseLinearTest);

TEST_P(HeadwiseLinearTest, EachHeadHasTheBitsOfItsOwnLinear) {
  struct Shape {
    std::size_t heads, m, n, k;
  };
  for (auto const& [heads, m, n, k] : {Shape{1, 1, 1, 1},
                                       {3, 1, 24, 16},
                                       {4, 65, 17, 24},
                                       {2, 129, 72, 33},
                                       {5, 7, 129, 3},
                                       {3, 0, 8, 8},
                                       {2, 70, 5, 240}})
    for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights})
      for (std::size_t threads : {1, 3}) {
        Rig rig(GetParam(), threads);
        std::size_t const x_stride = k + 2;
        std::size_t const y_stride = n + 3;
        auto const x = random_matrix(m, heads * x_stride, 1);
        std::vector<PackedMatrix> w;
        for (std::size_t h = 0; h < heads; ++h)
          w.push_back(reference::packed(format, random_matrix(n, k, 10 + h).view()));
        auto y = random_matrix(m, heads * y_stride, 2);
        auto const before = random_matrix(m, heads * y_stride, 2);
        headwise_linear(rig.exec, x.view(), w, {.x_stride = x_stride, .y_stride = y_stride}, y.view());
        for (std::size_t h = 0; h < heads; ++h) {
          Matrix<float> expected(m, n);
          linear(rig.exec, x.view().columns(h * x_stride, k), w[h], expected.view());
          EXPECT_TRUE(same_bits(y.view().columns(h * y_stride, n), expected.view()))
              << heads << " heads, M " << m << " N " << n << " K " << k << ", head " << h;
          EXPECT_TRUE(same_bits(y.view().columns(h * y_stride + n, 3), before.view().columns(h * y_stride + n, 3)));
        }
      }
}

TEST_P(HeadwiseLinearTest, ARowHasTheSameBitsAlone) {
  Rig rig(GetParam(), 2);
  auto const x = random_matrix(67, 3 * 24, 1);
  for (WeightFormat const& format : {kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    std::vector<PackedMatrix> w;
    for (std::size_t h = 0; h < 3; ++h) w.push_back(reference::packed(format, random_matrix(40, 24, 10 + h).view()));
    Matrix<float> whole(67, 3 * 40), one(1, 3 * 40);
    HeadColumns const columns{.x_stride = 24, .y_stride = 40};
    headwise_linear(rig.exec, x.view(), w, columns, whole.view());
    for (std::size_t m : {0, 3, 63, 64, 66}) {
      headwise_linear(rig.exec, x.view().row_range(m, 1), w, columns, one.view());
      EXPECT_TRUE(same_bits(one.view(), whole.view().row_range(m, 1))) << m;
    }
  }
}

}  // namespace
}  // namespace expertmesh
