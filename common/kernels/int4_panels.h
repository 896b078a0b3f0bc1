// How int4 weights lie in the panels of a PackedMatrix, and what a group of them is. A panel is one stream, for each
// group of 32 k:
//   [ceil(K/32)] x { bf16 [16] scales, u8 [4][16][4] }
// Byte [s][n][j] has the number of k = 8 s + j in its low half and that of k = 8 s + 4 + j in its high half, both + 8.
// 4.5 bits a weight. Padding columns have the scale 0; padding k meet activations that are 0.
#pragma once
#include <cstddef>
#include <cstdint>

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

struct Int4Group {
  bf16 scale;                     // NaN where there is a number that is infinite or NaN
  std::int8_t whole[kInt4Group];  // -8 … 7
};

// x: [kInt4Group], zeros behind the row's end. The whole numbers and the scale whose products have the least sum of
// squared errors, among steps that put the number of largest magnitude m at -9 … -7: for whole numbers q the best scale
// is sum(x q) / sum(q q), and leaves sum(x x) - sum(x q)^2 / sum(q q).
inline Int4Group int4_group_of(float const* x) {
  constexpr float kPlaces[] = {-9, -8.5F, -8, -7.5F, -7};
  constexpr std::size_t kSums = 8;  // side by side
  Int4Group out{};
  float m = 0;
  bool finite = true;
  for (std::size_t i = 0; i < kInt4Group; ++i) {
    finite = finite && __builtin_isfinite(x[i]);
    m = __builtin_fabsf(x[i]) > __builtin_fabsf(m) ? x[i] : m;
  }
  if (!finite) {
    out.scale = to_bf16(__builtin_nanf(""));
    return out;
  }
  if (__builtin_fabsf(m) < kInt8Least) return out;
  auto const whole = [](float scaled) {
    return static_cast<float>(int8_of(scaled < -8 ? -8.0F : scaled > 7 ? 7.0F : scaled, 1));
  };
  float best = -1;
  float scale = 0;
  for (float const place : kPlaces) {
    float const inverse = place / m;
    float xq[kSums] = {};
    float qq[kSums] = {};
    for (std::size_t i = 0; i < kInt4Group; i += kSums)
      for (std::size_t j = 0; j < kSums; ++j) {
        float const q = whole(x[i + j] * inverse);
        xq[j] += x[i + j] / m * q;  // of the size of 1
        qq[j] += q * q;
      }
    float sum_xq = 0;
    float sum_qq = 0;
    for (std::size_t j = 0; j < kSums; ++j) {
      sum_xq += xq[j];
      sum_qq += qq[j];
    }
    float const explained = sum_xq * sum_xq / sum_qq;
    if (explained <= best) continue;
    best = explained;
    scale = m * (sum_xq / sum_qq);
  }
  out.scale = to_bf16(scale);
  for (std::size_t i = 0; i < kInt4Group; ++i)
    out.whole[i] = static_cast<std::int8_t>(whole(x[i] / to_float(out.scale)));
  return out;
}

}  // namespace
}  // namespace expertmesh
