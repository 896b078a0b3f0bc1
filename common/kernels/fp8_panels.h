// How FP8 (E4M3) weights lie in the panels of a PackedMatrix, and which bfloat16 numbers they are. A panel is one
// stream, for each group of K the columns' scales, then the codes in the order of a bfloat16 panel:
//   [ceil(K/G)] x { f32 [16] scales, u8 [ceil(k/2)][16][2] }    k: G, the last group's may be fewer
// A scale for each column: blocks of a checkpoint may begin anywhere among the rows of a panel. Padding columns and k
// have the code 0.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "common/base/small_floats.h"
#include "common/config/weight_format.h"
#include "common/kernels/bf16_bits.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kFp8PairBytes = 2 * kPanelColumns;
constexpr std::size_t kFp8ScaleBytes = kPanelColumns * sizeof(float);

inline std::size_t fp8_groups(std::size_t k, std::size_t group) {
  return (k + group - 1) / group;
}
inline std::size_t fp8_panel_bytes(std::size_t k, std::size_t group) {
  return fp8_groups(k, group) * kFp8ScaleBytes + (k + 1) / 2 * kFp8PairBytes;
}

// Pairs of k of one group of a panel.
struct Fp8Pairs {
  float const* scales;        // [16]
  std::uint8_t const* codes;  // [pairs][16][2]
  std::size_t pairs;
};

// Numbers [k, k + count) of a panel; both even but for the panel's end, and in one group.
inline Fp8Pairs fp8_pairs(std::byte const* panel, std::size_t group, std::size_t k, std::size_t count) {
  std::byte const* const at = panel + k / group * (kFp8ScaleBytes + group / 2 * kFp8PairBytes);
  return {.scales = reinterpret_cast<float const*>(at),
          .codes = reinterpret_cast<std::uint8_t const*>(at + kFp8ScaleBytes + k % group / 2 * kFp8PairBytes),
          .pairs = (count + 1) / 2};
}

// Magnitudes of scales, as bits of float32, that no product of with a code or with 2^8 is subnormal or infinite before
// it is rounded: from 2^-117 to below 2^118.
constexpr std::int32_t kFp8LeastPlainBits = (127 - 117) << 23;
constexpr std::int32_t kFp8MostPlainBits = ((127 + 118) << 23) - 1;

constexpr std::array<float, 256> kE4m3Values = [] {
  std::array<float, 256> values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = e4m3_to_float(static_cast<std::uint8_t>(i));
  return values;
}();

// As they are in a bfloat16 panel: the product in float32, rounded. out: [pairs][16][2].
inline void decode_fp8_exactly(Fp8Pairs const& in, std::uint16_t* out) {
  for (std::size_t i = 0; i < in.pairs * kFp8PairBytes; ++i)
    out[i] = bf16_bits(kE4m3Values[in.codes[i]] * in.scales[i % kFp8PairBytes / 2]);
}

// After an odd number of k the last pair's second numbers are padding: 0, also where the scale is infinite.
inline void clear_padding(std::size_t count, std::uint16_t* out) {
  if (count % 2 == 0) return;
  for (std::size_t n = 0; n < kPanelColumns; ++n) out[count / 2 * kFp8PairBytes + 2 * n + 1] = 0;
}

}  // namespace
}  // namespace expertmesh
