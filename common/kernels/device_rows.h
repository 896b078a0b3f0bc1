// How a row of K numbers of a weight lies in a device's memory: what kernels read, and what a loader writes there.
//   f32, bf16   numbers, zeros behind the K-th up to a multiple of 16 of them
//   f8_e4m3     blocks of 64 numbers, 64 bytes each; then a float32 scale for each 128 numbers
//   f4_e2m1     blocks of 128 numbers, 64 bytes each; then four E8M0 scales for each 128 numbers
// Blocks of codes are as tensor cores want them (cuda/tensor_core.h): of a span of 32 numbers lane t of four has the
// unit of numbers 8t … 8t+7, and a block has 16 bytes for each lane, its units of one span after the other:
//   f8_e4m3     8 bytes, of each four numbers in the order 2, 0, 3, 1. Signs of scales are in the codes; here a sign is
//               a mark: one of the 128 codes is NaN.
//   f4_e2m1     a word. Each half has, from bit 15 down, s0 s2 s3 s1 m3 m0 m1 m2: s is the sign and m the three other
//               bits of numbers 0, 2, 4, 6 in the lower half, and of 1, 3, 5, 7 in the upper one.
// Codes that are not there are 0. Rows begin at multiples of 32 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/config/weight_format.h"

namespace expertmesh {

constexpr std::size_t kDeviceChunk = 128;  // numbers whose scales are one word of 32 bits
constexpr std::size_t kDeviceBlock = 64;   // bytes of codes

struct DeviceRow {
  std::size_t numbers = 0;  // bytes of numbers or codes; scales are behind them
  std::size_t bytes = 0;    // from a row to the next
};
DeviceRow device_row(DType storage, std::size_t k);

// Whether devices have kernels for weights [N,K] of this format: of FP8, for scales of 128 numbers or a multiple.
bool device_multiplies(WeightFormat const& format, std::size_t k);

// A row of a checkpoint's codes and scales, as PackedMatrix::set_codes() takes them, into zeros or another row; and
// back, where scales are not negative.
void lay_out_codes(WeightFormat const& format, std::size_t k, std::byte const* codes, std::byte const* scales,
                   std::byte* row);
void read_codes(WeightFormat const& format, std::size_t k, std::byte const* row, std::byte* codes, std::byte* scales);

}  // namespace expertmesh
