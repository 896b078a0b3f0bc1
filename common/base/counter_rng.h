// Random numbers that are a pure function of what they are for: (seed, choice, position, purpose, layer, expert).
// No state, so a value does not depend on batch, order, worker or restart.
#pragma once
#include <cmath>
#include <cstdint>

namespace expertmesh {

enum class RngPurpose : std::uint32_t {
  sample = 1,
  router_noise = 2,
  dummy_weight = 3,
  benchmark = 4,
  benchmark_request = 5
};

struct RngKey {
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;    // index of the choice of n
  std::uint32_t position = 0;  // of the token in its sequence
  RngPurpose purpose = RngPurpose::sample;
  std::uint32_t layer = 0;
  std::uint32_t expert = 0;
};

// Mixes 64 bits so that every input bit reaches every output bit (the finaliser of SplitMix64, Steele et al. 2014).
constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

constexpr std::uint64_t random_bits(RngKey const& key, std::uint32_t draw = 0) {
  std::uint64_t h = mix64(key.seed);
  h = mix64(h ^ (static_cast<std::uint64_t>(key.choice) << 32 | key.position));
  h = mix64(h ^ (static_cast<std::uint64_t>(key.purpose) << 32 | key.layer));
  return mix64(h ^ (static_cast<std::uint64_t>(key.expert) << 32 | draw));
}

// Uniform in [0, 1), 53 bits.
constexpr double random_uniform(RngKey const& key, std::uint32_t draw = 0) {
  return static_cast<double>(random_bits(key, draw) >> 11) * 0x1p-53;
}

// Standard normal by Box and Muller (1958).
inline double random_normal(RngKey const& key) {
  double const u = 1.0 - random_uniform(key, 0);  // (0, 1]
  double const v = random_uniform(key, 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
}

}  // namespace expertmesh
