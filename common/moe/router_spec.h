// Everything that distinguishes one published router from another, as data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

namespace expertmesh {

enum class RouterScoring : std::uint8_t {
  softmax,  // p = softmax(h) over all E experts
  none,     // p = h: the logits themselves are compared (selection before the softmax)
};

enum class RouterSelection : std::uint8_t {
  top_k,  // the K largest p; among equals the lower expert index first
};

enum class RouterNormalisation : std::uint8_t {
  none,               // gate weight = p of the chosen
  sum_to_one,         // p / sum of the chosen p
  softmax_of_chosen,  // softmax over the chosen logits, the others -inf (Shazeer et al. 2017, eq. 3-5)
};

// Noisy top-k gating (Shazeer et al. 2017, eq. 4): h = x Wg + eps * softplus(x Wn), eps ~ N(0,1). Off at inference
// unless asked for.
struct RouterNoise {
  std::uint64_t seed = 0;
};

struct RouterSpec {
  std::size_t num_experts = 0;        // E
  std::size_t experts_per_token = 0;  // K
  RouterScoring scoring = RouterScoring::softmax;
  RouterSelection selection = RouterSelection::top_k;
  RouterNormalisation normalisation = RouterNormalisation::sum_to_one;
  float scale = 1.0F;  // multiplies every gate weight
  std::optional<RouterNoise> noise = std::nullopt;
};

}  // namespace expertmesh
