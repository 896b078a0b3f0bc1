// Router: gate logits -> the experts of each token and what their outputs are multiplied by. Pure.
//
// h [E]: a token's logits; p their scores; b [E] the selection bias, 0 where there is none. C: the K experts of the
// best p + b (within the best groups, where there are groups), in order of falling p + b, the lower index first among
// equals.
//
//   scoring      choice        gate weight of e in C                      families                       source
//   softmax      K best        p_e / sum over C of p                      mixtral, qwen3_moe, olmoe,     Jiang et al.
//                                                                         qwen2_moe with norm_topk_prob, 2024
//                                                                         hunyuan_v1_moe
//   softmax      K best        p_e                                        qwen3_moe, qwen2_moe, olmoe    Muennighoff et
//                                                                         without norm_topk_prob         al. 2024
//   softmax      K best of     scale * p_e                                deepseek_v2 (groups by their   DeepSeek-AI
//                groups                                                   largest score, or none)        2024, V2
//   sigmoid      K best p + b  scale * p_e / (sum over C of p + 1e-20),   deepseek_v3, glm4_moe, dots1   DeepSeek-AI
//                of groups     or scale * p_e without norm_topk_prob      (groups by their best two)     2024, V3, eq.
//                16
//   sigmoid      K best p + b  p_e / sum over C of p                      minimax_m2                     MiniMax 2025
//   softmax      K best p + b  p_e / max(sum over C of p, moe_norm_min)   ernie4_5_moe                   Baidu 2025
//   none         K best        exp(h_e) / sum over C of exp(h)            noisy_topk_moe, granitemoe,    Shazeer et al.
//                                                                         granitemoeshared, gpt_oss      2017, eq. 3, 5
//   none         K best        1 / (1 + exp(-h_e)), on the input          llama4_text                    Meta 2025
//   sparsemixer  one by one    softmax over near rivals                   phimoe                         Liu et al.
//   2024
//
// With noise, h = x Wg + eps * softplus(x Wn), eps ~ N(0,1) (Shazeer et al. 2017, eq. 4). All in fp32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/config/router_spec.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

constexpr std::size_t kMaxExperts = 1024;  // E of one layer; K is at most E

struct RouterNoiseInput {
  MatrixView<float const> scale_logits;  // [T,E] x Wn
  MatrixView<float const> eps;           // [T,E] standard normal
};

struct RouterInput {
  MatrixView<float const> logits;  // [T,E]
  std::optional<RouterNoiseInput> noise = {};
  std::span<float const> selection_bias = {};  // [E], or empty
};

// experts, weights: [T,K]. Chooses K distinct experts and finite weights whatever the logits: +inf counts as the
// largest finite number, -inf and NaN as the smallest. Does not allocate.
void route(RouterSpec const& spec, RouterInput const& in, std::span<std::uint32_t> experts, std::span<float> weights);

// eps[t][e] standard normal, a pure function of (seed, positions[t], layer, e). eps: [T,E]
void router_noise(std::uint64_t seed, std::span<std::uint32_t const> positions, std::uint32_t layer,
                  MatrixView<float> eps);

}  // namespace expertmesh
