// Everything that distinguishes one published router from another, as data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

namespace expertmesh {

// In place of an expert: the slot has none, since the expert it was meant for takes no more tokens. Its weight is 0,
// and nothing of it is sent or added.
constexpr std::uint32_t kNoExpert = 0xffffffff;

// Logits h -> scores p of all E experts.
enum class RouterScoring : std::uint8_t {
  softmax,      // p = softmax(h)
  sigmoid,      // p = 1 / (1 + e^-h)
  none,         // p = h: the logits themselves are compared
  sparsemixer,  // K times the best of what is left, each weighed by a softmax over its near rivals (see SparseMixer)
};

// The chosen experts' p -> gate weights.
enum class RouterNormalisation : std::uint8_t {
  none,               // gate weight = p
  sum_to_one,         // p / max(sum of the chosen p + sum_offset, sum_floor)
  softmax_of_chosen,  // softmax over the chosen p, the others -inf (Shazeer et al. 2017, eq. 3-5)
  sigmoid_of_chosen,  // 1 / (1 + e^-p)
};

// Noisy top-k gating (Shazeer et al. 2017, eq. 4): h = x Wg + eps * softplus(x Wn), eps ~ N(0,1). Off at inference
// unless asked for.
struct RouterNoise {
  std::uint64_t seed = 0;
};

// What a group of experts is worth when groups are compared.
enum class GroupScore : std::uint8_t {
  largest,  // of its experts' scores
  sum_of_two_largest,
};

// Group-limited choice (DeepSeek-AI 2024): experts 0…E/count-1 are the first group, and so on; only those of the
// `chosen` best groups can be taken.
struct RouterGroups {
  std::size_t count = 1;   // divides E
  std::size_t chosen = 1;  // at least K experts lie in so many groups
  GroupScore score = GroupScore::largest;
};

// SparseMixer-v2 at inference (Liu et al. 2024, arXiv:2409.12136): of the logits left, m the largest, those with
// (m - h) / max(|h|, m) > 2 jitter are out; gate weight = the softmax of the others at m.
struct SparseMixer {
  float jitter = 0.01F;
};

struct RouterSpec {
  std::size_t num_experts = 0;        // E
  std::size_t experts_per_token = 0;  // K
  RouterScoring scoring = RouterScoring::softmax;
  // Without groups all K best; among equals the lower expert index first.
  std::optional<RouterGroups> groups = std::nullopt;
  RouterNormalisation normalisation = RouterNormalisation::sum_to_one;
  float sum_offset = 0;
  float sum_floor = 0;
  float scale = 1.0F;  // multiplies every gate weight
  std::optional<RouterNoise> noise = std::nullopt;
  SparseMixer sparse_mixer = {};
};

}  // namespace expertmesh
