// The number types of quantised checkpoints. float32 holds every value exactly.
#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace expertmesh {

// FP8 E4M3 without infinities (Micikevicius et al. 2022, arXiv:2209.05433): NaN is 0x7f and 0xff, the largest 448.
constexpr float e4m3_to_float(std::uint8_t bits) {
  std::uint32_t const sign = (bits & 0x80U) << 24;
  std::uint32_t const exponent = bits >> 3 & 0xfU;
  std::uint32_t const mantissa = bits & 7U;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 120) << 23 | mantissa << 20);
  float const magnitude = static_cast<float>(mantissa) * 0x1p-9F;  // subnormal
  return sign != 0 ? -magnitude : magnitude;
}

constexpr std::array<float, 256> kE4m3Values = [] {
  std::array<float, 256> values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = e4m3_to_float(static_cast<std::uint8_t>(i));
  return values;
}();

// FP4 E2M1 of the low four bits (OCP Microscaling Formats 1.0, 2023, section 5.3.3): 0, 0.5, 1, 1.5, 2, 3, 4, 6.
constexpr float e2m1_to_float(std::uint8_t bits) {
  constexpr float kMagnitude[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  float const magnitude = kMagnitude[bits & 7U];
  return (bits & 8U) != 0 ? -magnitude : magnitude;
}

// Scale E8M0 (same, section 5.4.1): 2^(bits - 127); 255 is NaN.
constexpr float e8m0_to_float(std::uint8_t bits) {
  if (bits == 255) return std::numeric_limits<float>::quiet_NaN();
  return bits == 0 ? 0x1p-127F : std::bit_cast<float>(std::uint32_t{bits} << 23);
}

}  // namespace expertmesh
