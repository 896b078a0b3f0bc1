// How MXFP4 weights lie in the panels of a PackedMatrix, and which bfloat16 numbers they are. A panel is one stream,
// for each group of 32 k:
//   [K/32] x { E8M0 [32] scales, u16 [4][32][2] }
// Word [s][n][j] has the codes of k = 8 s + 2 q + j in its bits 4 q … 4 q + 3, q = 0 … 3: shifted by 4 q, the words of
// a step are those of a pair of k in a bfloat16 panel, but for the table and the scale. 4.25 bits a weight. Padding
// columns have the code 0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "common/base/small_floats.h"
#include "common/config/weight_format.h"
#include "common/kernels/bf16_bits.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMxfp4GroupK = kMxfp4Weights.group_size;
constexpr std::size_t kMxfp4StepK = 8;
constexpr std::size_t kMxfp4StepBytes = kMxfp4StepK * kPanelColumns / 2;
constexpr std::size_t kMxfp4ScaleBytes = kPanelColumns;
constexpr std::size_t kMxfp4GroupBytes = kMxfp4ScaleBytes + kMxfp4GroupK / kMxfp4StepK * kMxfp4StepBytes;
constexpr std::uint8_t kMxfp4One = 127;  // the scale 1

inline std::size_t mxfp4_panel_bytes(std::size_t k) {
  return k / kMxfp4GroupK * kMxfp4GroupBytes;
}

// Of code and scale as the bfloat16 numbers of a loader: the product in float32, rounded.
constexpr std::array<float, 16> kE2m1Values = [] {
  std::array<float, 16> values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = e2m1_to_float(static_cast<std::uint8_t>(i));
  return values;
}();
constexpr std::array<float, 256> kE8m0Values = [] {
  std::array<float, 256> values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = e8m0_to_float(static_cast<std::uint8_t>(i));
  return values;
}();

// Scales that every code's product with is a normal bfloat16 number or 0: there a scale is added to a code's exponent.
constexpr std::uint8_t kMxfp4LeastPlain = 2;
constexpr std::uint8_t kMxfp4MostPlain = 252;

// Sixteen columns of a group of a panel.
struct Mxfp4Group {
  std::byte const* scales;  // [16]
  std::byte const* words;   // [4 steps][16][2], from step to step kMxfp4StepBytes
};
inline Mxfp4Group mxfp4_group(std::byte const* group, std::size_t vector) {
  return {.scales = group + vector * kLanes, .words = group + kMxfp4ScaleBytes + vector * kLanes * 4};
}

// As they are in a bfloat16 panel, out: [16 pairs][16][2], from pair to pair 2 kPanelColumns.
inline void decode_mxfp4_exactly(Mxfp4Group const& in, std::uint16_t* out) {
  auto const* const scales = reinterpret_cast<std::uint8_t const*>(in.scales);
  auto const* const words = reinterpret_cast<std::uint16_t const*>(in.words);
  constexpr std::size_t kWords = 2 * kPanelColumns;  // of a step, and of a pair of k
  for (std::size_t pair = 0; pair < kMxfp4GroupK / 2; ++pair)
    for (std::size_t i = 0; i < 2 * kLanes; ++i) {
      unsigned const code = words[pair / 4 * kWords + i] >> 4 * (pair % 4) & 15U;
      out[pair * kWords + i] = bf16_bits(kE2m1Values[code] * kE8m0Values[scales[i / 2]]);
    }
}

}  // namespace
}  // namespace expertmesh
