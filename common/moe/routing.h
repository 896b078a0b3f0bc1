// What a router decided for a batch of tokens.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace expertmesh {

// experts, weights: [T,K] row-major; slot k of token t at t*K + k, slots in order of falling score.
// In place of an expert: the slot has none, since the expert it was meant for takes no more tokens. Its weight is 0,
// and nothing of it is sent or added.
constexpr std::uint32_t kNoExpert = 0xffffffff;

struct RoutingView {
  std::span<std::uint32_t const> experts;
  std::span<float const> weights;
  std::size_t experts_per_token = 0;  // K
  [[nodiscard]] std::size_t num_tokens() const {
    return experts_per_token == 0 ? 0 : experts.size() / experts_per_token;
  }
};

}  // namespace expertmesh
