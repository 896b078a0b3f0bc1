// bfloat16 and float16 as storage types: conversion to and from float, round to nearest even.
#pragma once
#include <bit>
#include <cstdint>

namespace expertmesh {

struct bf16 {
  std::uint16_t bits = 0;
  bool operator==(bf16 const&) const = default;
};
struct fp16 {
  std::uint16_t bits = 0;
  bool operator==(fp16 const&) const = default;
};

inline float to_float(bf16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

// Round to nearest even; NaN stays NaN (quiet).
inline bf16 to_bf16(float x) {
  auto const u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((u >> 16) | 0x0040U)};
  return {static_cast<std::uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16)};
}

inline float to_float(fp16 x) {
  std::uint32_t const sign = static_cast<std::uint32_t>(x.bits & 0x8000U) << 16;
  std::uint32_t const exponent = (x.bits >> 10) & 0x1fU;
  std::uint32_t const mantissa = x.bits & 0x3ffU;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  float const magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // subnormal
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace expertmesh
