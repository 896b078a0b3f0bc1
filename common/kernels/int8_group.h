// Symmetric int8: a group of numbers as whole numbers of -127 … 127 times one scale, the largest magnitude / 127. The
// same for weights and activations; each step is one IEEE operation, so that every ISA gets the same bits. Private to
// common/kernels, and in an anonymous namespace like everything that is compiled for several ISAs.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/config/weight_format.h"

namespace expertmesh {
namespace {

constexpr std::size_t kInt8Group = kInt8Weights.group_size;
constexpr float kInt8Largest = 127.0F;
constexpr float kInt8Least = 1e-30F;  // a group of smaller numbers is 0: the inverse of a smaller scale may be infinite

struct Int8Scale {
  float scale;    // NaN where there is a number that is infinite or NaN: then so is every product with the group
  float inverse;  // 0 where all of the group are 0
};

// largest: the bits of the group's largest magnitude. Bits of magnitudes have the order of the magnitudes.
[[gnu::always_inline]] inline Int8Scale int8_scale_of(std::int32_t largest) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  if (largest >= kInfinity) return {__builtin_nanf(""), 0};
  float const magnitude = __builtin_bit_cast(float, largest);
  if (magnitude < kInt8Least) return {0, 0};
  return {magnitude / kInt8Largest, kInt8Largest / magnitude};
}
// x: the n numbers of a group.
[[gnu::always_inline]] inline Int8Scale int8_scale_of(float const* x, std::size_t n) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::int32_t const bits = __builtin_bit_cast(std::int32_t, x[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return int8_scale_of(largest);
}

// To nearest even: adding this leaves the whole number in the low bits of the sum.
constexpr float kInt8Shift = 12582912.0F;  // 1.5 * 2^23
inline std::int32_t int8_of(float x, float inverse) {
  return __builtin_bit_cast(std::int32_t, x * inverse + kInt8Shift) - __builtin_bit_cast(std::int32_t, kInt8Shift);
}

// whole: [kInt8Group], zeros behind the n numbers x.
[[gnu::always_inline]] inline Int8Scale quantise_numbers(float const* x, std::size_t n,
                                                         std::int32_t (&whole)[kInt8Group]) {
  Int8Scale const s = int8_scale_of(x, n);
  bool const counts = s.inverse != 0;  // what is infinite or NaN has no whole number
  for (std::size_t i = 0; i < n; ++i) whole[i] = counts ? int8_of(x[i], s.inverse) : 0;
  for (std::size_t i = n; i < kInt8Group; ++i) whole[i] = 0;
  return s;
}
inline Int8Scale quantise_group(float const* x, std::size_t n, std::int32_t (&whole)[kInt8Group]) {
  // Nearly all groups are whole ones: their loops are unrolled.
  return n == kInt8Group ? quantise_numbers(x, kInt8Group, whole) : quantise_numbers(x, n, whole);
}

}  // namespace
}  // namespace expertmesh
