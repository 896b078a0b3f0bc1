// bfloat16, float16 and float32 in kernels, as bits: the same results on host and device.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/kernels/cuda/portable.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

struct alignas(16) Words4 {  // one 128-bit load
  std::uint32_t w[4];
};

EM_BOTH inline float float_of_bits(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
EM_BOTH inline std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
EM_BOTH inline float float_of_bf16(std::uint16_t bits) {
  return float_of_bits(static_cast<std::uint32_t>(bits) << 16);
}
// The two of a word: the lower half comes first in memory.
EM_BOTH inline float low_bf16(std::uint32_t two) {
  return float_of_bits(two << 16);
}
EM_BOTH inline float high_bf16(std::uint32_t two) {
  return float_of_bits(two & 0xffff0000U);
}
// To nearest, ties to even; a NaN stays one. As common/base/bf16.h.
EM_BOTH inline std::uint16_t bf16_of_float(float x) {
  std::uint32_t const bits = bits_of_float(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}
// As common/base/bf16.h.
EM_BOTH inline float float_of_fp16(std::uint16_t x) {
  std::uint32_t const sign = (x & 0x8000U) << 16;
  std::uint32_t const exponent = (x >> 10) & 0x1fU;
  std::uint32_t const mantissa = x & 0x3ffU;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  float const magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // subnormal
  return sign != 0 ? -magnitude : magnitude;
}
EM_BOTH inline float rounded_to_bf16(float x) {
  return float_of_bf16(bf16_of_float(x));
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
