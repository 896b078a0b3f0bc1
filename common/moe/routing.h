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
  // The same in the memory of the device that routed, if one did: then `experts` and `weights` may be empty, if nobody
  // has asked for them on the host.
  std::span<std::uint32_t const> device_experts{};
  std::span<float const> device_weights{};
  [[nodiscard]] std::size_t num_tokens() const {
    std::size_t const slots = device_experts.empty() ? experts.size() : device_experts.size();
    return experts_per_token == 0 ? 0 : slots / experts_per_token;
  }
};

}  // namespace expertmesh
