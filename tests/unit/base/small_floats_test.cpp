#include "common/base/small_floats.h"

#include <gtest/gtest.h>

#include <cmath>

namespace expertmesh {
namespace {

// Sign, exponent and mantissa of a code, as the formats' papers have it.
double value(int code, int exponent_bits, int mantissa_bits) {
  int const mantissa = code & ((1 << mantissa_bits) - 1);
  int const exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  int const bias = (1 << (exponent_bits - 1)) - 1;
  double const fraction = std::ldexp(mantissa, -mantissa_bits);
  double const magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return (code >> (exponent_bits + mantissa_bits) & 1) != 0 ? -magnitude : magnitude;
}

TEST(SmallFloats, E4m3AllCodes) {
  for (int code = 0; code < 256; ++code) {
    float const x = e4m3_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(x)) << code;
      continue;
    }
    EXPECT_EQ(static_cast<double>(x), value(code, 4, 3)) << code;
    EXPECT_EQ(std::signbit(x), code >= 128) << code;
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0F);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9F);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0F);
}

TEST(SmallFloats, E2m1AllCodesInEitherHalfOfAByte) {
  float const magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int byte = 0; byte < 256; ++byte) {
    float const x = e2m1_to_float(static_cast<std::uint8_t>(byte));
    EXPECT_EQ(static_cast<double>(x), value(byte & 15, 2, 1)) << byte;
    EXPECT_EQ(std::abs(x), magnitudes[byte & 7]) << byte;
    EXPECT_EQ(std::signbit(x), (byte & 8) != 0) << byte;
  }
}

TEST(SmallFloats, E8m0AllCodes) {
  for (int code = 0; code < 255; ++code)
    EXPECT_EQ(static_cast<double>(e8m0_to_float(static_cast<std::uint8_t>(code))), std::ldexp(1.0, code - 127)) << code;
  EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
}

}  // namespace
}  // namespace expertmesh
