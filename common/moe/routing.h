// What a router decided for a batch of tokens.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/config/router_spec.h"

namespace expertmesh {

// experts, weights: [T,K] row-major; slot k of token t at t*K + k, slots in order of falling score.
struct RoutingView {
  std::span<std::uint32_t const> experts;
  std::span<float const> weights;
  std::size_t experts_per_token = 0;  // K
  [[nodiscard]] std::size_t num_tokens() const {
    return experts_per_token == 0 ? 0 : experts.size() / experts_per_token;
  }
};

}  // namespace expertmesh
