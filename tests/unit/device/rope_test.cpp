#include "common/kernels/rope.h"

#include <gtest/gtest.h>

#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

class DeviceRopeTest : public EachDevice {};
EM_FOR_EACH_DEVICE(DeviceRopeTest);

TEST_P(DeviceRopeTest, TurnsPairsAsTheProcessorDoes) {
  struct Shape {
    std::size_t heads, half, first, after;  // elements before and after the rotated ones of a head
  };
  for (auto const& [heads, half, first, after] : {Shape{1, 1, 0, 0},
                                                  {3, 3, 0, 0},
                                                  {8, 32, 0, 0},
                                                  {5, 64, 0, 0},
                                                  {3, 36, 0, 8},
                                                  {3, 3, 0, 5},
                                                  {2, 4, 7, 1},
                                                  {2, 32, 128, 0},
                                                  {40, 6, 4, 0}})
    for (std::size_t rows : {1, 2, 33})
      for (bool interleaved : {false, true})
        for (Margins margins : kMargins) {
          RopeHeads const spec{
              .num_heads = heads, .head_dim = first + 2 * half + after, .first = first, .interleaved = interleaved};
          auto x = random_matrix(rows, heads * spec.head_dim, 1);
          auto const cos = random_matrix(rows, half, 2);
          auto const sin = random_matrix(rows, half, 3);
          DeviceMatrix const on_device_x(*device_, x.view(), margins);
          DeviceMatrix const on_device_cos(*device_, cos.view(), {margins.after, 0});
          DeviceMatrix const on_device_sin(*device_, sin.view(), {0, margins.after});
          device_->apply_rope(on_device_x.view(), spec, on_device_cos.view(), on_device_sin.view());
          apply_rope(host_.exec, x.view(), spec, cos.view(), sin.view());
          EXPECT_TRUE(same_bits(on_device_x.values().view(), x.view()))
              << heads << " heads, " << half << " " << first << " " << after << " " << interleaved;
          EXPECT_TRUE(on_device_x.margins_are_untouched());
        }
}

}  // namespace
}  // namespace expertmesh
