// The bytes of packed weights: the same however the rows come, and in every build of one layout.
#include "common/kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>

#include "common/base/bf16.h"
#include "common/base/checksum.h"
#include "common/kernels/panel_packing.h"

namespace expertmesh {
namespace {

constexpr WeightFormat kFormats[] = {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights};

// Of all sizes, groups of zeros and of numbers that are too small for a scale, infinities and NaN among them.
std::vector<std::byte> stored_rows(DType type, std::size_t n, std::size_t k) {
  std::mt19937 random(static_cast<unsigned>(n * 1000 + k));
  std::vector<std::byte> bytes(n * k * size_of(type) + 1);  // not aligned: from 1 on
  for (std::size_t i = 0; i < n * k; ++i) {
    auto x = static_cast<float>(random() % 20001) / 10000.0F - 1.0F;
    if (random() % 50 == 0) x *= 100;
    if (i / k % 7 == 3) x = random() % 3 == 0 ? 1e-35F : 0.0F;
    if (random() % 900 == 0) x = std::numeric_limits<float>::infinity();
    if (random() % 900 == 0) x = std::numeric_limits<float>::quiet_NaN();
    std::byte* const at = bytes.data() + 1 + i * size_of(type);
    bf16 const rounded = to_bf16(x);
    fp16 const half{static_cast<std::uint16_t>(random() & 0xffffU)};
    if (type == DType::f32) std::memcpy(at, &x, sizeof x);
    if (type == DType::bf16) std::memcpy(at, &rounded, sizeof rounded);
    if (type == DType::f16) std::memcpy(at, &half, sizeof half);
  }
  return bytes;
}

std::span<std::byte const> bytes_of(PackedMatrix const& w) {
  return {w.data(), w.size_bytes()};
}

TEST(PackedMatrix, HasTheSameBytesHoweverManyRowsComeAtOnce) {
  for (WeightFormat const& format : kFormats)
    for (DType type : {DType::f32, DType::bf16, DType::f16})
      for (std::size_t n : {1U, 16U, 31U, 32U, 33U, 72U})
        for (std::size_t k : {1U, 3U, 31U, 33U, 64U, 130U, 300U}) {
          auto const rows = stored_rows(type, n, k);
          PackedMatrix all(format, n, k);
          all.set_rows(0, n, type, rows.data() + 1);
          for (std::size_t at_once : {1U, 7U, 32U}) {
            PackedMatrix some(format, n, k);
            for (std::size_t row = 0; row < n; row += at_once)
              some.set_rows(row, std::min(at_once, n - row), type, rows.data() + 1 + row * k * size_of(type));
            ASSERT_TRUE(std::ranges::equal(bytes_of(all), bytes_of(some)))
                << name_of(format.storage) << " of " << name_of(type) << " [" << n << "," << k << "] by " << at_once;
          }
        }
}

TEST(PackedMatrix, HasTheSameBytesForEveryInstructionSet) {
  auto const packers = runnable_packers();
  for (WeightFormat const& format : kFormats)
    for (DType type : {DType::f32, DType::bf16, DType::f16})
      for (std::size_t k : {1U, 31U, 32U, 100U, 128U, 300U}) {
        auto const rows = stored_rows(type, kPanelColumns, k);
        std::vector<std::vector<std::byte>> panels;
        for (PackPanel const pack : packers) {
          panels.emplace_back(panel_bytes(format, k));
          pack(format, {.type = type, .data = rows.data() + 1, .count = kPanelColumns}, k, panels.back().data());
          ASSERT_EQ(panels.back(), panels.front()) << name_of(format.storage) << " of " << name_of(type) << " K " << k;
        }
      }
}

// Packed weights are kept on disks: whoever changes these bytes also changes kPackedLayout, and then these sums.
TEST(PackedMatrix, HasTheBytesOfItsLayout) {
  static_assert(kPackedLayout == 2);
  std::vector<std::uint64_t> sums;
  for (WeightFormat const& format : kFormats) {
    std::uint64_t sum = 0;
    for (DType type : {DType::f32, DType::bf16})
      for (std::size_t k : {3U, 100U, 256U}) {
        auto const rows = stored_rows(type, 67, k);
        PackedMatrix w(format, 67, k);
        w.set_rows(0, 67, type, rows.data() + 1);
        sum = checksum(bytes_of(w), sum);
      }
    sums.push_back(sum);
  }
  EXPECT_EQ(sums, (std::vector<std::uint64_t>{15893547719647924061ULL, 2493012097277006209, 7667625299164166136,
                                              12158219160993081252ULL}));
}

TEST(PackedMatrix, TakesBytesThatSomebodyElseKeeps) {
  auto const rows = stored_rows(DType::f32, 40, 40);
  for (WeightFormat const& format : kFormats) {
    auto const owner = std::make_shared<PackedMatrix>(format, 40, 40);
    owner->set_rows(0, 40, DType::f32, rows.data() + 1);
    PackedMatrix const w(format, 40, 40, bytes_of(*owner), owner);
    EXPECT_EQ(w.data(), owner->data());
    EXPECT_EQ(w.size_bytes(), packed_bytes(format, 40, 40));
    EXPECT_EQ(owner.use_count(), 2);
  }
}

}  // namespace
}  // namespace expertmesh
