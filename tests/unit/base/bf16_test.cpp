#include "common/base/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace expertmesh {
namespace {

TEST(Bf16, EveryValueSurvivesTheWayThroughFloat) {
  for (std::uint32_t bits = 0; bits <= 0xffffU; ++bits) {
    bf16 const x{static_cast<std::uint16_t>(bits)};
    float const wide = to_float(x);
    if (std::isnan(wide))
      EXPECT_TRUE(std::isnan(to_float(to_bf16(wide)))) << bits;
    else
      EXPECT_EQ(to_bf16(wide).bits, bits);
  }
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(to_float(to_bf16(1.0F + 0x1p-8F)), 1.0F);               // a tie, down to even
  EXPECT_EQ(to_float(to_bf16(1.0F + 0x3p-8F)), 1.0F + 0x1p-6F);     // a tie, up to even
  EXPECT_EQ(to_float(to_bf16(1.0F + 0x1.01p-8F)), 1.0F + 0x1p-7F);  // just above a tie
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::max())), std::numeric_limits<float>::infinity());
}

TEST(Fp16, EveryFiniteValueIsWhatItsBitsSay) {
  for (std::uint32_t bits = 0; bits <= 0xffffU; ++bits) {
    int const exponent = static_cast<int>(bits >> 10 & 0x1fU);
    double const mantissa = bits & 0x3ffU;
    double const sign = (bits & 0x8000U) != 0 ? -1 : 1;
    float const x = to_float(fp16{static_cast<std::uint16_t>(bits)});
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(x), mantissa != 0) << bits;
      EXPECT_EQ(std::isinf(x), mantissa == 0) << bits;
    } else {
      double const value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(static_cast<double>(x), sign * value) << bits;
    }
    EXPECT_EQ(std::signbit(x), sign < 0) << bits;
  }
}

}  // namespace
}  // namespace expertmesh
