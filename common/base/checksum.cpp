#include "common/base/checksum.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace expertmesh {
namespace {

constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
constexpr std::size_t kLanes = 4;

// A bijection of `sum` for every `word`, and of `word` for every `sum`: no single change is lost on the way.
std::uint64_t mix(std::uint64_t sum, std::uint64_t word) {
  std::uint64_t const product = (sum ^ word) * kOdd;
  return product ^ product >> 32;
}

}  // namespace

std::uint64_t checksum(std::span<std::byte const> bytes, std::uint64_t seed) {
  std::array<std::uint64_t, kLanes> lanes{seed, seed + 1, seed + 2, seed + 3};
  std::uint64_t const size = bytes.size();
  while (!bytes.empty()) {
    std::array<std::uint64_t, kLanes> words{};
    std::size_t const count = std::min(bytes.size(), sizeof words);
    std::memcpy(words.data(), bytes.data(), count);
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
    bytes = bytes.subspan(count);
  }
  std::uint64_t sum = size;
  for (std::uint64_t const lane : lanes) sum = mix(sum, lane);
  return sum == 0 ? 1 : sum;
}

std::uint64_t checksum_in_pieces(std::span<std::byte const> bytes, std::uint64_t seed) {
  for (std::size_t begin = 0; begin < bytes.size(); begin += kChecksumPiece)
    seed = checksum(bytes.subspan(begin, std::min(kChecksumPiece, bytes.size() - begin)), seed);
  return seed;
}

}  // namespace expertmesh
