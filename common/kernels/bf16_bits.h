// to_bf16() for code that is compiled for several ISAs: in an anonymous namespace. Private to common/kernels.
#pragma once
#include <cstdint>

namespace expertmesh {
namespace {

[[gnu::always_inline]] inline std::uint16_t bf16_bits(float x) {
  auto const bits = __builtin_bit_cast(std::uint32_t, x);
  bool const nan = (bits & 0x7fffffffU) > 0x7f800000U;
  std::uint32_t const rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  return static_cast<std::uint16_t>(nan ? bits >> 16 | 0x40U : rounded);
}

}  // namespace
}  // namespace expertmesh
