// How int4 weights lie in the panels of a PackedMatrix, and what a group of them is. A panel is one stream, for each
// group of 32 k:
//   [ceil(K/32)] x { bf16 [32] scales, u8 [4][32][4] }
// Byte [s][n][j] has the number of k = 8 s + j in its low half and that of k = 8 s + 4 + j in its high half, both + 8.
// 4.5 bits a weight. Padding columns have the scale 0; padding k meet activations that are 0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/base/bf16.h"
#include "common/config/weight_format.h"
#include "common/kernels/int8_group.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kInt4Group = kInt4Weights.group_size;
constexpr std::size_t kInt4StepK = 8;
constexpr std::size_t kInt4StepBytes = kInt4StepK * kPanelColumns / 2;
constexpr std::size_t kInt4ScaleBytes = kPanelColumns * sizeof(std::uint16_t);
constexpr std::size_t kInt4BlockBytes = kInt4ScaleBytes + kInt4Group / kInt4StepK * kInt4StepBytes;  // a whole group
constexpr int kInt4Bias = 8;
// Groups of weights that meet one group of an activation row.
constexpr std::size_t kInt4GroupsAtOnce = kInt8Group / kInt4Group;

inline std::size_t int4_groups(std::size_t k) {
  return (k + kInt4Group - 1) / kInt4Group;
}
inline std::size_t int4_panel_bytes(std::size_t k) {
  return int4_groups(k) * kInt4BlockBytes;
}

// Numbers of as many columns of a panel as a vector register has, of 16, 32 or 64 bytes.
struct FourColumns {
  using Floats = float __attribute__((vector_size(16)));
  using Whole = std::int32_t __attribute__((vector_size(16)));
  static constexpr std::size_t kCount = 4;
};
struct EightColumns {
  using Floats = float __attribute__((vector_size(32)));
  using Whole = std::int32_t __attribute__((vector_size(32)));
  static constexpr std::size_t kCount = 8;
};
struct SixteenColumns {
  using Floats = float __attribute__((vector_size(64)));
  using Whole = std::int32_t __attribute__((vector_size(64)));
  static constexpr std::size_t kCount = 16;
};

// As int8_of(), of the scale 1.
template <class C>
[[gnu::always_inline]] inline void int4_nearest(typename C::Floats const& scaled, typename C::Whole& whole) {
  using Floats = typename C::Floats;
  Floats const least = Floats{} - 8.0F;
  Floats const most = Floats{} + 7.0F;
  Floats const shift = Floats{} + kInt8Shift;
  Floats const within = scaled < least ? least : scaled > most ? most : scaled;
  whole = __builtin_bit_cast(typename C::Whole, within + shift) - __builtin_bit_cast(typename C::Whole, shift);
}

// A group of each of these columns: scales, and whole numbers of -8 … 7. x: zeros behind the row's end. Those whose
// products have the least sum of squared errors, among steps that put the number of largest magnitude m at -9 … -7: for
// whole numbers q the best scale is sum(x q) / sum(q q), and leaves sum(x x) - sum(x q)^2 / sum(q q).
// scales: of bf16; NaN, and the whole numbers 0, where there is a number that is infinite or NaN.
template <class C>
[[gnu::always_inline]] inline void quantise_int4(typename C::Floats const (&x)[kInt4Group],
                                                 std::uint16_t (&scales)[C::kCount],
                                                 typename C::Whole (&whole)[kInt4Group]) {
  using Floats = typename C::Floats;
  using Whole = typename C::Whole;
  constexpr float kPlaces[] = {-9, -8.5F, -8, -7.5F, -7};
  constexpr std::size_t kSums = 8;  // side by side
  Floats m{};
  Whole largest{};  // bits of magnitudes
  for (Floats const& numbers : x) {
    Whole const bits = __builtin_bit_cast(Whole, numbers) & 0x7fffffff;
    m = bits > largest ? numbers : m;
    largest = bits > largest ? bits : largest;
  }
  Floats sizes[kInt4Group];  // x / m: of the size of 1
  for (std::size_t i = 0; i < kInt4Group; ++i) sizes[i] = x[i] / m;
  Floats best = Floats{} - 1.0F;
  Floats best_scale{};
  for (float const place : kPlaces) {
    Floats const inverse = place / m;
    Floats xq[kSums] = {};
    Floats qq[kSums] = {};
    for (std::size_t i = 0; i < kInt4Group; i += kSums)
      for (std::size_t j = 0; j < kSums; ++j) {
        int4_nearest<C>(x[i + j] * inverse, whole[i + j]);
        Floats const q = __builtin_convertvector(whole[i + j], Floats);
        xq[j] += sizes[i + j] * q;
        qq[j] += q * q;
      }
    Floats sum_xq{};
    Floats sum_qq{};
    for (std::size_t j = 0; j < kSums; ++j) {
      sum_xq += xq[j];
      sum_qq += qq[j];
    }
    Floats const explained = sum_xq * sum_xq / sum_qq;
    Floats const scale = m * (sum_xq / sum_qq);
    best_scale = explained > best ? scale : best_scale;
    best = explained > best ? explained : best;
  }
  Whole const finite = largest < 0x7f800000;
  Whole const counts = finite & (__builtin_bit_cast(Floats, largest) >= Floats{} + kInt8Least);
  Floats const nan = Floats{} + __builtin_nanf("");
  best_scale = !finite ? nan : counts ? best_scale : Floats{};
  float rounded_scales[C::kCount];
  std::memcpy(rounded_scales, &best_scale, sizeof rounded_scales);
  for (std::size_t n = 0; n < C::kCount; ++n) {
    bf16 const scale = to_bf16(rounded_scales[n]);
    scales[n] = scale.bits;
    rounded_scales[n] = to_float(scale);
  }
  Floats rounded;
  std::memcpy(&rounded, rounded_scales, sizeof rounded);
  for (std::size_t i = 0; i < kInt4Group; ++i) {
    int4_nearest<C>(x[i] / rounded, whole[i]);
    whole[i] &= counts;
  }
}

}  // namespace
}  // namespace expertmesh
