// 16 floats as a plain array: the portable implementation, and the meaning of the others. Included by one .cpp only.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;      // of a GEMM's register tile
constexpr std::size_t kFewRows = 4;       // as many are one tile
constexpr std::size_t kAccumulators = 4;  // vectors in it
constexpr std::size_t kAttendRows = 4;    // of attention's register tile
constexpr std::size_t kAttendSums = 4;    // vectors in it

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
inline Vec load(std::int8_t const* p) {
  return Vec::make([&](int i) { return static_cast<float>(p[i]); });
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
// Sum of the lanes as a tree of fixed shape: halves, quarters, pairs.
inline float sum_lanes(Vec const& v) {
  Vec s = v;
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s.lane[i] += s.lane[i + width];
  return s.lane[0];
}
// NaN is passed over: -inf where there is nothing else.
inline float max_lanes(Vec const& v) {
  float largest = -__builtin_huge_valf();
  for (float const lane : v.lane) largest = lane > largest ? lane : largest;
  return largest;
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

// ---- int8: 16 sums, the weights [16][4] of a step of four k, and a row's four numbers
struct Ints {
  std::int32_t lane[16];
};
using Int8Element = std::int8_t;
constexpr int kInt8WeightBias = 128;  // that the weights of load_int8() have: 0 where it takes it away
struct Int8Weights {
  std::uint8_t byte[64];
};
struct Int8Row {
  std::int8_t x[4];
};

inline Ints broadcast(std::int32_t x) {
  Ints v;
  for (std::int32_t& lane : v.lane) lane = x;
  return v;
}
inline Vec to_floats(Ints const& a) {
  return Vec::make([&](int i) { return static_cast<float>(a.lane[i]); });
}
inline Vec const& to_floats(Vec const& a) {
  return a;
}
inline Int8Weights load_int8(std::byte const* p) {
  Int8Weights w;
  std::memcpy(w.byte, p, sizeof w.byte);
  return w;
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {{x[0], x[1], x[2], x[3]}};
}
// acc[n] += w[n][0] x[0] + … + w[n][3] x[3]
inline Ints dot_int8(Ints const& acc, Int8Weights const& w, Int8Row const& row) {
  Ints sum = acc;
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 4; ++j) sum.lane[i] += w.byte[4 * i + j] * row.x[j];
  return sum;
}
// A group's whole numbers as broadcast_int8 reads them.
template <std::size_t N>
void arrange(std::int32_t const (&whole)[N], Int8Element* out) {
  for (std::size_t i = 0; i < N; ++i) out[i] = static_cast<Int8Element>(whole[i]);
}

// ---- int4: 16 sums over a group, the weights [16][8] of a step of eight k, and a row's eight numbers
struct Int4Weights {
  Int8Weights low, high;
};

inline Int4Weights load_int4(std::byte const* p) {
  Int4Weights w;
  for (std::size_t i = 0; i < 64; ++i) {
    auto const both = static_cast<std::uint8_t>(p[i]);
    w.low.byte[i] = both & 15U;
    w.high.byte[i] = both >> 4U;
  }
  return w;
}

}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/dots_int4_by_int8.h"
