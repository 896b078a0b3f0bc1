// 16 floats as a plain array: the portable implementation, and the meaning of the others. Included by one .cpp only.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;      // of a GEMM's register tile
constexpr std::size_t kAccumulators = 4;  // vectors in it

struct Vec {
  float lane[16];

  template <class F>
  static Vec make(F f) {
    Vec v;
    for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
    return v;
  }
};

inline Vec zero() {
  return Vec::make([](int) { return 0.0F; });
}
inline Vec broadcast(float x) {
  return Vec::make([&](int) { return x; });
}
inline Vec load(float const* p) {
  return Vec::make([&](int i) { return p[i]; });
}
inline void store(float* p, Vec const& v) {
  std::memcpy(p, v.lane, sizeof v.lane);
}
inline float widened(std::uint32_t high_bits) {
  float x;
  std::memcpy(&x, &high_bits, sizeof x);
  return x;
}
inline Vec load(std::uint16_t const* p) {
  return Vec::make([&](int i) { return widened(static_cast<std::uint32_t>(p[i]) << 16); });
}
inline Vec fma(Vec const& a, Vec const& b, Vec const& c) {
  return Vec::make([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Vec operator+(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec operator-(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec operator*(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec operator/(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] / b.lane[i]; });
}
// As the x86 instructions have it: the second operand if either is NaN.
inline Vec min(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec max(Vec const& a, Vec const& b) {
  return Vec::make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec round_to_int(Vec const& a) {
  return Vec::make([&](int i) { return std::nearbyintf(a.lane[i]); });
}
// 2^n for whole n in [-126, 127], 1 for NaN.
inline Vec power_of_two(Vec const& n) {
  return Vec::make([&](int i) {
    std::int32_t const exponent = n.lane[i] == n.lane[i] ? static_cast<std::int32_t>(n.lane[i]) : 0;
    return widened(static_cast<std::uint32_t>(exponent + 127) << 23);
  });
}
// 0 where x0 < bound, else x.
inline Vec zero_below(Vec const& x0, float bound, Vec const& x) {
  return Vec::make([&](int i) { return x0.lane[i] < bound ? 0.0F : x.lane[i]; });
}
// Row i of the tile becomes column i.
inline void transpose(Vec (&tile)[16]) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      float const x = tile[i].lane[j];
      tile[i].lane[j] = tile[j].lane[i];
      tile[j].lane[i] = x;
    }
}
// acc[n] += w[n][0] x0, then w[n][1] x1; w: 16 pairs of bfloat16, x: one pair (low half first).
inline Vec dot_bf16(Vec const& acc, std::uint16_t const* w, std::uint32_t x) {
  float const x0 = widened(x << 16);
  float const x1 = widened(x & 0xffff0000U);
  return Vec::make([&](int i) {
    float const w0 = widened(static_cast<std::uint32_t>(w[2 * i]) << 16);
    float const w1 = widened(static_cast<std::uint32_t>(w[2 * i + 1]) << 16);
    return std::fma(w1, x1, std::fma(w0, x0, acc.lane[i]));
  });
}

}  // namespace
}  // namespace expertmesh
