// A router's decision, as the tests look at it.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "common/moe/router.h"

namespace expertmesh::test {

struct Routed {
  std::vector<std::uint32_t> experts;  // [tokens * K]
  std::vector<float> weights;          // [tokens * K]
};

inline Routed routed(RouterSpec const& spec, std::vector<float> const& logits,
                     std::optional<RouterNoiseInput> const& noise = std::nullopt) {
  std::size_t const tokens = logits.size() / spec.num_experts;
  Routed out{std::vector<std::uint32_t>(tokens * spec.experts_per_token),
             std::vector<float>(tokens * spec.experts_per_token)};
  route(spec, {.logits = {logits.data(), tokens, spec.num_experts}, .noise = noise}, out.experts, out.weights);
  return out;
}

}  // namespace expertmesh::test
