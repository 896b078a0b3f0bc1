// A model as data. A family file turns config.json into this; the decoder knows nothing else.
// Shapes: H hidden, Q heads, G KV heads, D head dim, E experts, K experts per token, F expert FFN, V vocabulary.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/moe/router_spec.h"

namespace expertmesh {

enum class RopeKind : std::uint8_t { none, standard };

// Rotary embedding, half-split layout (dimension i is paired with i + D/2): angle = position * theta^(-2i/D).
struct RopeSpec {
  RopeKind kind = RopeKind::standard;
  double theta = 10000.0;
  bool operator==(RopeSpec const&) const = default;
};

// RMS norm: x / sqrt(mean(x^2) + epsilon) * weight.
struct NormSpec {
  std::string weight;  // [H], or [D] for q/k norms
  float epsilon = 1e-5F;
};

struct AttentionSpec {
  std::size_t num_heads = 0;          // Q
  std::size_t num_kv_heads = 0;       // G, divides Q
  std::size_t head_dim = 0;           // D
  float softmax_scale = 0;            // multiplies q.k
  std::optional<std::size_t> window;  // a token sees itself and window - 1 before it
  RopeSpec rope;
  std::string q;                   // [Q*D,H]
  std::string k;                   // [G*D,H]
  std::string v;                   // [G*D,H]
  std::string o;                   // [H,Q*D]
  std::optional<NormSpec> q_norm;  // over each head's D, before RoPE
  std::optional<NormSpec> k_norm;
};

struct DenseFfnSpec {
  std::size_t intermediate = 0;  // I
  Activation activation = Activation::silu;
  std::string gate;  // [I,H]
  std::string up;    // [I,H]
  std::string down;  // [H,I]
};

struct MoeFfnSpec {
  RouterSpec router;
  std::string router_weight;                       // [E,H]
  std::optional<std::string> router_noise_weight;  // [E,H], noisy top-k only
  std::size_t intermediate = 0;                    // F
  Activation activation = Activation::silu;
  std::vector<ExpertTensors> experts;  // [E]
};

struct LayerSpec {
  NormSpec input_norm;  // before attention
  AttentionSpec attention;
  NormSpec post_attention_norm;  // before the FFN
  std::variant<DenseFfnSpec, MoeFfnSpec> ffn;
};

enum class StackKind : std::uint8_t { decoder };

struct StackSpec {
  StackKind kind = StackKind::decoder;
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
};

struct ModelSpec {
  std::string family;                  // model_type of config.json
  std::size_t hidden = 0;              // H
  std::size_t vocab = 0;               // V
  std::size_t max_position = 0;        // tokens of context the checkpoint was made for
  DType stored_dtype = DType::bf16;    // torch_dtype / dtype of the config
  std::string embedding;               // [V,H]
  std::optional<std::string> lm_head;  // [V,H]; none: the embedding is used (tied)
  std::vector<StackSpec> stacks;
  std::vector<TokenId> eos_ids;  // generation_config.json's, else config.json's
  // What generation_config.json wants for requests that do not say.
  std::optional<float> default_temperature;
  std::optional<float> default_top_p;
};

// Every tensor the checkpoint must hold, with its shape.
std::vector<TensorInfo> required_tensors(ModelSpec const& spec);
// Tensors that may be there without being used (a stored copy of a tied lm_head, rotary inv_freq buffers, …).
std::vector<TensorInfo> optional_tensors(ModelSpec const& spec);
// The routed experts of all MoE layers, packed as `weights`, sent as `wire`.
ExpertModelSpec expert_model_spec(ModelSpec const& spec, WeightFormat weights, DType wire);

struct ModelOptions {
  std::optional<std::uint64_t> router_noise_seed;  // --router-noise: turns the noise of noisy_topk_moe on
};

// Reads config.json (and generation_config.json where there is one) of a model directory. Throws ModelError naming the
// file and the field: unknown family, missing or contradictory value, a field that is neither used nor known to be
// without effect.
ModelSpec read_model_spec(std::filesystem::path const& model_dir, ModelOptions const& options);

}  // namespace expertmesh
