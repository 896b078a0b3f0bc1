#include "common/base/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace expertmesh {
namespace {

TEST(Checksum, EveryChangeOfAByteIsSeen) {
  std::mt19937 random(4);
  for (std::size_t const size : {1U, 7U, 8U, 31U, 32U, 33U, 100U}) {
    std::vector<std::byte> bytes(size);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    std::set<std::uint64_t> sums{checksum(bytes)};
    for (std::size_t i = 0; i < size; ++i)
      for (int bit = 0; bit < 8; ++bit) {
        bytes[i] ^= static_cast<std::byte>(1 << bit);
        sums.insert(checksum(bytes));
        bytes[i] ^= static_cast<std::byte>(1 << bit);
      }
    EXPECT_EQ(sums.size(), 1 + 8 * size);
    EXPECT_EQ(checksum(bytes), checksum(std::vector(bytes)));
    EXPECT_NE(checksum(bytes), checksum(bytes, 9));
  }
}

TEST(Checksum, LengthCounts) {
  std::vector<std::byte> const zeros(64);
  std::set<std::uint64_t> sums;
  for (std::size_t size = 0; size <= zeros.size(); ++size) sums.insert(checksum(std::span(zeros).first(size)));
  EXPECT_EQ(sums.size(), zeros.size() + 1);
  EXPECT_FALSE(sums.contains(0));
}

}  // namespace
}  // namespace expertmesh
