// What the inner loops share over Vec (16 floats), of whichever ISA was included before.
#pragma once
#include <cstddef>
#include <cstring>

#include "common/kernels/bf16_bits.h"
#include "common/kernels/kernel_table.h"

// Before a loop over the sums of a register tile: only when it is unrolled do they stay in registers.
#if defined(__clang__)
#define EM_UNROLL _Pragma("unroll")
#define EM_UNROLL_INT4_STEPS _Pragma("unroll(kInt4StepsUnrolled)")
#else
#define EM_UNROLL _Pragma("GCC unroll 32")
#define EM_UNROLL_INT4_STEPS _Pragma("GCC unroll kInt4StepsUnrolled")
#endif

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
// Of several vectors step by step: none has to wait for its own last one.
template <std::size_t N>
[[gnu::always_inline]] inline void exponential(Vec (&x)[N]) {
  Vec n[N];
  Vec r[N];
  Vec p[N];
  auto const each = [](auto body) __attribute__((always_inline)) {
    EM_UNROLL
    for (std::size_t i = 0; i < N; ++i) body(i);
  };
  each([&](std::size_t i) {
    r[i] = min(broadcast(89.0F), max(broadcast(-86.6F), x[i]));
    n[i] = round_to_int(r[i] * broadcast(1.44269504F));
  });
  // ln 2 in two parts, the first exact in few bits
  each([&](std::size_t i) { r[i] = fma(n[i], broadcast(-0.693359375F), r[i]); });
  each([&](std::size_t i) { r[i] = fma(n[i], broadcast(2.12194440e-4F), r[i]); });
  each([&](std::size_t i) { p[i] = fma(broadcast(1.0F / 5040), r[i], broadcast(1.0F / 720)); });
  for (float const c : {1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F})
    each([&](std::size_t i) { p[i] = fma(p[i], r[i], broadcast(c)); });
  // 2^128 is no float
  each([&](std::size_t i) { x[i] = zero_below(x[i], -86.6F, (p[i] + p[i]) * power_of_two(n[i] - broadcast(1.0F))); });
}
inline Vec exponential(Vec const& x0) {
  Vec x[1] = {x0};
  exponential(x);
  return x[0];
}

}  // namespace
}  // namespace expertmesh
