#include "common/kernels/device_rows.h"

#include <algorithm>
#include <cstring>

#include "common/kernels/fp8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

constexpr std::size_t kSpan = 32;
constexpr std::size_t kLaneNumbers = 8;  // of a span
constexpr std::size_t kNumbersAtOnce = 16;
constexpr std::size_t kRowAlignment = 32;
constexpr std::byte kSign{0x80};

// The byte that has number k, of 8 / bits in it, where blocks and lanes have their bytes.
std::size_t unit_at(std::size_t k, std::size_t spans_of_block, std::size_t unit_bytes) {
  std::size_t const span = k / kSpan;
  return span / spans_of_block * kDeviceBlock + k % kSpan / kLaneNumbers * (spans_of_block * unit_bytes) +
         span % spans_of_block * unit_bytes;
}

std::size_t fp8_at(std::size_t k) {
  constexpr std::size_t kPlace[] = {1, 3, 0, 2};
  return unit_at(k, 2, 8) + k % kLaneNumbers / 4 * 4 + kPlace[k % 4];
}

// Where a half of a word has the sign of its i-th number, and the other three bits.
constexpr unsigned kSignBit[] = {15, 12, 14, 13};
constexpr unsigned kOtherBits[] = {6, 3, 0, 9};

std::uint32_t load_word(std::byte const* p) {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}
void store_word(std::uint32_t word, std::byte* p) {
  std::memcpy(p, &word, sizeof word);
}

void lay_out_fp8(std::size_t group, std::size_t k, std::byte const* codes, std::byte const* scales, std::byte* row) {
  std::byte* const scales_out = row + device_row(DType::f8_e4m3, k).numbers;
  for (std::size_t begin = 0; begin < k; begin += kDeviceChunk) {
    std::uint32_t const scale = load_word(scales + begin / group * sizeof scale);
    std::byte const flip = (scale & kFp8Mark) != 0 ? kSign : std::byte{};
    bool nan = false;
    for (std::size_t i = begin; i < std::min(k, begin + kDeviceChunk); ++i) {
      nan = nan || (codes[i] | kSign) == std::byte{0xff};
      row[fp8_at(i)] = codes[i] ^ flip;
    }
    store_word((scale & ~kFp8Mark) | (nan ? kFp8Mark : 0), scales_out + begin / kDeviceChunk * sizeof scale);
  }
}

void lay_out_mxfp4(std::size_t k, std::byte const* codes, std::byte const* scales, std::byte* row) {
  for (std::size_t begin = 0; begin < k; begin += kLaneNumbers) {
    std::uint32_t word = 0;
    for (unsigned i = 0; i < kLaneNumbers; ++i) {
      unsigned const code = std::to_integer<unsigned>(codes[(begin + i) / 2]) >> i % 2 * 4;
      word |= ((code & 8U) >> 3 << kSignBit[i / 2] | (code & 7U) << kOtherBits[i / 2]) << i % 2 * 16;
    }
    store_word(word, row + unit_at(begin, 4, 4));
  }
  std::memcpy(row + device_row(DType::f4_e2m1, k).numbers, scales, k / kMxfp4GroupK);
}

}  // namespace

DeviceRow device_row(DType storage, std::size_t k) {
  if (storage != DType::f8_e4m3 && storage != DType::f4_e2m1) {
    std::size_t const bytes = (k + kNumbersAtOnce - 1) / kNumbersAtOnce * kNumbersAtOnce * size_of(storage);
    return {.numbers = bytes, .bytes = bytes};
  }
  std::size_t const of_block = storage == DType::f8_e4m3 ? kDeviceBlock : 2 * kDeviceBlock;
  std::size_t const codes = (k + of_block - 1) / of_block * kDeviceBlock;
  std::size_t const all = codes + (k + kDeviceChunk - 1) / kDeviceChunk * sizeof(std::uint32_t);
  return {.numbers = codes, .bytes = (all + kRowAlignment - 1) / kRowAlignment * kRowAlignment};
}

bool device_multiplies(WeightFormat const& format, std::size_t k) {
  if (format == kFloat32Weights || format == kBfloat16Weights) return true;
  if (format == kMxfp4Weights) return k % kMxfp4GroupK == 0;
  return format.group_size != 0 && format.group_size % kDeviceChunk == 0 && format == fp8_weights(format.group_size);
}

void lay_out_codes(WeightFormat const& format, std::size_t k, std::byte const* codes, std::byte const* scales,
                   std::byte* row) {
  if (format.storage == DType::f4_e2m1)
    lay_out_mxfp4(k, codes, scales, row);
  else
    lay_out_fp8(format.group_size, k, codes, scales, row);
}

void read_codes(WeightFormat const& format, std::size_t k, std::byte const* row, std::byte* codes, std::byte* scales) {
  std::byte const* const scales_in = row + device_row(format.storage, k).numbers;
  if (format.storage == DType::f4_e2m1) {
    for (std::size_t i = 0; i < k; i += 2) {
      std::uint32_t const word = load_word(row + unit_at(i, 4, 4));
      unsigned const pair = i % kLaneNumbers / 2;
      unsigned both = 0;
      for (unsigned half = 0; half < 2; ++half) {
        std::uint32_t const bits = word >> half * 16;
        both |= ((bits >> kSignBit[pair] & 1U) << 3 | (bits >> kOtherBits[pair] & 7U)) << half * 4;
      }
      codes[i / 2] = static_cast<std::byte>(both);
    }
    std::memcpy(scales, scales_in, k / kMxfp4GroupK);
    return;
  }
  for (std::size_t i = 0; i < k; ++i) codes[i] = row[fp8_at(i)];
  for (std::size_t begin = 0; begin < k; begin += format.group_size, scales += sizeof(std::uint32_t))
    store_word(load_word(scales_in + begin / kDeviceChunk * sizeof(std::uint32_t)) & ~kFp8Mark, scales);
}

}  // namespace expertmesh
