// How FP8 (E4M3) weights lie in the panels of a PackedMatrix, and which bfloat16 numbers they are. A panel is one
// stream, for each group of K the columns' scales, then steps of four k:
//   [ceil(K/G)] x { u32 [32] scales, u8 [ceil(k/4)][8][2][8] }    k: G, the last group's may be fewer
// Of a step, byte [l][h][i] is number 8 l + i of pair h of k as a bfloat16 panel has them: unpacking the low or high
// bytes of 128-bit lanes makes that pair's words. A scale for each column: blocks of a checkpoint may begin anywhere
// among the rows of a panel. It is not negative, codes are of the other sign then; as the bits of a float32, with the
// sign as a mark: products need care, having NaN, or being, as 2^8 times the scale may be, subnormal or infinite before
// they are rounded. Padding columns and k have the code 0.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/base/small_floats.h"
#include "common/config/weight_format.h"
#include "common/kernels/bf16_bits.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kFp8StepK = 4;
constexpr std::size_t kFp8StepBytes = kFp8StepK * kPanelColumns;
constexpr std::size_t kFp8ScaleBytes = kPanelColumns * sizeof(float);

inline std::size_t fp8_groups(std::size_t k, std::size_t group) {
  return (k + group - 1) / group;
}
inline std::size_t fp8_panel_bytes(std::size_t k, std::size_t group) {
  return fp8_groups(k, group) * kFp8ScaleBytes + (k + kFp8StepK - 1) / kFp8StepK * kFp8StepBytes;
}

// Byte of a step that has number i of a pair, in the order of a bfloat16 panel: [32][2].
inline std::size_t fp8_place(std::size_t pair, std::size_t i) {
  return i / 8 * 16 + pair * 8 + i % 8;
}

// Steps of sixteen columns of one group of a panel.
struct Fp8Steps {
  std::uint32_t const* scales;  // [16]
  std::uint8_t const* codes;    // [steps][64], from step to step kFp8StepBytes
  std::size_t steps;
};

// Numbers [k, k + count) of a vector of a panel; both whole steps but for the panel's end, and in one group.
inline Fp8Steps fp8_steps(std::byte const* panel, std::size_t group, std::size_t vector, std::size_t k,
                          std::size_t count) {
  std::byte const* const at = panel + k / group * (kFp8ScaleBytes + group / kFp8StepK * kFp8StepBytes);
  std::byte const* const codes = at + kFp8ScaleBytes + k % group / kFp8StepK * kFp8StepBytes;
  return {.scales = reinterpret_cast<std::uint32_t const*>(at) + vector * kLanes,
          .codes = reinterpret_cast<std::uint8_t const*>(codes) + vector * kLanes * kFp8StepK,
          .steps = (count + kFp8StepK - 1) / kFp8StepK};
}

constexpr std::uint32_t kFp8Mark = 0x80000000U;
constexpr std::uint32_t kFp8LeastPlainScale = (127 - 117) << 23;  // 2^-117
constexpr std::uint32_t kFp8PlainScalesEnd = (127 + 118) << 23;   // 2^118

// As they are in a bfloat16 panel: the product in float32, rounded. out: [2 steps][16][2], from
// pair to pair 2 kPanelColumns.
inline void decode_fp8_exactly(Fp8Steps const& in, std::uint16_t* out) {
  for (std::size_t pair = 0; pair < 2 * in.steps; ++pair)
    for (std::size_t i = 0; i < 2 * kLanes; ++i) {
      auto const scale = __builtin_bit_cast(float, in.scales[i / 2] & ~kFp8Mark);
      out[pair * 2 * kPanelColumns + i] =
          bf16_bits(kE4m3Values[in.codes[pair / 2 * kFp8StepBytes + fp8_place(pair % 2, i)]] * scale);
    }
}

// After an odd number of k the last pair's second numbers are padding: 0, also where the scale is infinite.
inline void clear_padding(std::size_t count, std::uint16_t* out) {
  if (count % 2 == 0) return;
  for (std::size_t n = 0; n < kLanes; ++n) out[(count - 1) * kPanelColumns + 2 * n + 1] = 0;
}

}  // namespace
}  // namespace expertmesh
