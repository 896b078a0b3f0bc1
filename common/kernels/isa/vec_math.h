// What the inner loops share over Vec (16 floats), of whichever ISA was included before.
#pragma once
#include <cstddef>
#include <cstring>

#include "common/kernels/bf16_bits.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kLineBytes = 64;  // of a cache
constexpr float kNegativeInfinity = -__builtin_huge_valf();

// ---- loads and stores of fewer than 16 elements: the missing lanes are 0
template <class T>
Vec load_some(T const* p, std::size_t n) {
  if (n >= kLanes) return load(p);
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

inline void store_some(float* p, Vec const& v, std::size_t n) {
  if (n >= kLanes) {
    store(p, v);
    return;
  }
  float lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, n * sizeof(float));
}

// 16 numbers rounded to nearest even; an ISA with an instruction for it has a store_bf16(p, Vec) that goes before this.
template <class V>
void store_bf16(std::uint16_t* p, V const& x) {
  float lanes[kLanes];
  store(lanes, x);
  for (std::size_t i = 0; i < kLanes; ++i) p[i] = bf16_bits(lanes[i]);
}

// e^x to about 2 ulp: e^x = 2^n e^r, |r| <= ln(2)/2, e^r by its Taylor polynomial of degree 7. 0 below -86.6 (where
// e^x < 2.5e-38), infinite where float ends, NaN for NaN.
inline Vec exponential(Vec const& x0) {
  Vec const x = min(broadcast(89.0F), max(broadcast(-86.6F), x0));
  Vec const n = round_to_int(x * broadcast(1.44269504F));
  Vec r = fma(n, broadcast(-0.693359375F), x);  // ln 2 in two parts, the first exact in few bits
  r = fma(n, broadcast(2.12194440e-4F), r);
  Vec p = broadcast(1.0F / 5040);
  p = fma(p, r, broadcast(1.0F / 720));
  p = fma(p, r, broadcast(1.0F / 120));
  p = fma(p, r, broadcast(1.0F / 24));
  p = fma(p, r, broadcast(1.0F / 6));
  p = fma(p, r, broadcast(0.5F));
  p = fma(p, r, broadcast(1.0F));
  p = fma(p, r, broadcast(1.0F));
  return zero_below(x0, -86.6F, (p + p) * power_of_two(n - broadcast(1.0F)));  // 2^128 is no float
}

}  // namespace
}  // namespace expertmesh
