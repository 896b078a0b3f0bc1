// Router: gate logits -> the experts of each token and what their outputs are multiplied by. Pure.
//
// h [E]: a token's logits. C: the K experts of the best score, in order of falling score, the lower index first among
// equals.
//
//   scoring  normalisation      gate weight of e in C                    families                  source
//   softmax  sum_to_one         p_e / sum over C of p, p = softmax(h)    mixtral, qwen3_moe        Jiang et al. 2024
//   softmax  none               p_e                                      qwen3_moe without         Muennighoff et al.
//                                                                        norm_topk_prob            2024 (OLMoE)
//   none     softmax_of_chosen  exp(h_e) / sum over C of exp(h)          noisy_topk_moe            Shazeer et al. 2017,
//                                                                                                  eq. 3 and 5
//
// With noise, h = x Wg + eps * softplus(x Wn), eps ~ N(0,1) (Shazeer et al. 2017, eq. 4). `scale` multiplies every gate
// weight. All in fp32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/moe/router_spec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

constexpr std::size_t kMaxExperts = 1024;  // E of one layer; K is at most E

struct RouterNoiseInput {
  MatrixView<float const> scale_logits;  // [T,E] x Wn
  MatrixView<float const> eps;           // [T,E] standard normal
};

// logits: [T,E]; experts, weights: [T,K]. Chooses K distinct experts and finite weights whatever the logits: +inf
// counts as the largest finite number, -inf and NaN as the smallest. Does not allocate.
void route(RouterSpec const& spec, MatrixView<float const> logits, std::optional<RouterNoiseInput> const& noise,
           std::span<std::uint32_t> experts, std::span<float> weights);

// eps[t][e] standard normal, a pure function of (seed, positions[t], layer, e). eps: [T,E]
void router_noise(std::uint64_t seed, std::span<std::uint32_t const> positions, std::uint32_t layer,
                  MatrixView<float> eps);

}  // namespace expertmesh
