// Router: gate logits -> the experts of each token and what their outputs are multiplied by. Pure.
//
// h: [E] a token's logits. Chosen C: the K best by score, in order of falling score, the lower index first among
// equals.
//
// | scoring | normalisation     | gate weight of e in C                     | source                          |
// families        |
// |---------|-------------------|-------------------------------------------|---------------------------------|-----------------|
// | softmax | sum_to_one        | p_e / sum over C of p, p = softmax(h)     | Jiang et al. 2024 (Mixtral)     |
// Mixtral, Qwen3  | | softmax | none              | p_e                                       | Muennighoff et al. 2024
// (OLMoE) | Qwen3, OLMoE    | | none    | softmax_of_chosen | exp(h_e) / sum over C of exp(h)           | Shazeer et
// al. 2017, eq. 3, 5   | noisy top-k     |
//
// With noise h = x Wg + eps * softplus(x Wn), eps ~ N(0,1) (Shazeer et al. 2017, eq. 4). `scale` multiplies every
// weight.
#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "common/moe/router_spec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

struct RouterNoiseInput {
  MatrixView<float const> scale_logits;  // [T,E] x Wn
  MatrixView<float const> eps;           // [T,E] standard normal
};

// logits: [T,E]; experts, weights: [T,K]. A NaN logit counts as -inf. Does not allocate; E is at most kMaxExperts.
constexpr std::size_t kMaxExperts = 1024;
void route(RouterSpec const& spec, MatrixView<float const> logits, std::optional<RouterNoiseInput> const& noise,
           std::span<std::uint32_t> experts, std::span<float> weights);

// eps[t][e] standard normal, a pure function of (seed, positions[t], layer, e).
void router_noise(std::uint64_t seed, std::span<std::uint32_t const> positions, std::uint32_t layer,
                  MatrixView<float> eps);

}  // namespace expertmesh
