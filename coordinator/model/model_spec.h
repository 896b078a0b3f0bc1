// A model as data. A family file turns config.json into this; the decoder knows nothing else.
// Shapes: H hidden, Q heads, G KV heads, D head dim, E experts, K experts per token, F expert FFN, V vocabulary.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/attention_span.h"
#include "common/config/expert_spec.h"
#include "common/config/router_spec.h"

namespace expertmesh {

enum class RopeKind : std::uint8_t { none, standard, linear, dynamic, banded, yarn, longrope };

// Rotary embedding. angle(position, i) = position * inverse_frequency[i], i < rotary_dim / 2; how the kinds make the
// inverse frequencies from theta is in rope_table.h.
struct RopeSpec {
  RopeKind kind = RopeKind::standard;
  double theta = 10000.0;
  std::size_t rotary_dim = 0;              // elements at the front of a head that are rotated; even, at most D
  bool interleaved = false;                // element 2i is paired with 2i+1, not i with i + rotary_dim/2
  double factor = 1.0;                     // linear, dynamic, banded, yarn
  std::size_t original_max_position = 0;   // dynamic, banded, yarn, longrope
  double low_freq_factor = 1.0;            // banded
  double high_freq_factor = 4.0;           // banded
  double beta_fast = 32.0;                 // yarn
  double beta_slow = 1.0;                  // yarn
  bool truncate = true;                    // yarn: the ramp's ends are whole numbers
  float magnitude = 1.0F;                  // multiplies cos and sin: yarn; longrope up to original_max_position
  float long_magnitude = 1.0F;             // longrope beyond it
  std::vector<double> short_factors = {};  // [rotary_dim/2] longrope
  std::vector<double> long_factors = {};   // [rotary_dim/2] longrope
  bool operator==(RopeSpec const&) const = default;
  // Whether the frequencies of a position depend on how long its sequence is.
  [[nodiscard]] bool depends_on_length() const { return kind == RopeKind::dynamic || kind == RopeKind::longrope; }
};

enum class NormKind : std::uint8_t {
  rms,    // x / sqrt(mean(x^2) + epsilon) * weight
  layer,  // (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias
};
struct NormSpec {
  std::string weight;  // [H]
  float epsilon = 1e-5F;
  NormKind kind = NormKind::rms;
  std::optional<std::string> bias{};  // [H] layer norm
};

// RMS norm of queries or keys.
enum class QkNormScope : std::uint8_t {
  head,        // over each head's D; weight [D]
  projection,  // over all heads together; weight [Q*D] or [G*D]
};
struct QkNormSpec {
  std::optional<std::string> weight;  // none: only the division
  float epsilon = 1e-6F;
  QkNormScope scope = QkNormScope::head;
  bool after_rope = false;
};

struct LinearSpec {
  WeightSlice weight;                 // [N,K]
  std::optional<VectorSlice> bias{};  // [N]
};

// Queries, keys and values by projection of the hidden state, G key/value heads shared by Q/G query heads each.
struct GroupedProjection {
  std::size_t num_kv_heads = 0;  // G, divides Q
  std::size_t head_dim = 0;      // D
  LinearSpec q;                  // [Q*D,H]
  LinearSpec k;                  // [G*D,H]
  LinearSpec v;                  // [G*D,H]
  std::optional<float> clip{};   // q, k and v are held within +-this (after a norm that is before RoPE)
  std::optional<QkNormSpec> q_norm{};
  std::optional<QkNormSpec> k_norm{};
};

// Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1): keys and values are projections of a
// latent c of C elements, which is what the cache holds, beside one rotated key part of R elements for all heads.
struct LatentProjection {
  std::size_t q_rank = 0;              // of the queries' latent; 0: q projects the hidden state itself
  std::size_t kv_rank = 0;             // C
  std::size_t nope_dim = 0;            // of a head's query and key, not rotated
  std::size_t rope_dim = 0;            // R
  std::size_t value_dim = 0;           // of a head's value
  std::optional<LinearSpec> q_a{};     // [q_rank,H]
  std::optional<NormSpec> q_a_norm{};  // [q_rank]
  LinearSpec q_b;                      // [Q*(nope+R), q_rank or H]
  LinearSpec kv_a;                     // [C+R,H]
  NormSpec kv_a_norm;                  // [C]
  WeightSlice kv_b;                    // [Q*(nope+value),C]
};

// Queries at position p are multiplied by 1 + scale * ln(floor((p + 1) / floor) + 1) (Nakanishi 2025,
// arXiv:2501.19399).
struct TemperatureTuning {
  double floor = 8192;
  double scale = 0.1;
};

// Learned numbers added to the scores by distance (Raffel et al. 2020, arXiv:1910.10683, section 2.1): near distances
// have a bucket each, farther ones share them in logarithmic steps, those from max_distance on the last.
struct RelativeBiasSpec {
  std::string weight;            // [buckets,Q]
  std::size_t buckets = 0;       // with bidirectional half of them for keys before the query or at it, half for later
  std::size_t max_distance = 0;  // more than the distances that have a bucket each
  bool bidirectional = false;    // else there are no keys after the query
};

struct AttentionSpec {
  std::size_t num_heads = 0;  // Q
  float softmax_scale = 0;    // multiplies q.k
  AttentionSpan span;
  RopeSpec rope;
  std::variant<GroupedProjection, LatentProjection> projection;
  LinearSpec o;                        // [H,Q*D]
  std::optional<std::string> sinks{};  // [Q] a logit more in each softmax, of a key without a value
  std::optional<TemperatureTuning> temperature{};
  std::optional<RelativeBiasSpec> relative_bias{};  // layers of a stack may share one

  [[nodiscard]] std::size_t value_dim() const;  // of a head's value; o's input is [Q*value_dim]
};

// An FFN on the coordinator: dense layers and shared experts.
struct DenseFfnSpec {
  std::size_t intermediate = 0;  // I
  ActivationSpec activation{};
  FfnTensors tensors;
};

// An expert that every token goes through, beside the routed ones.
struct SharedExpertSpec {
  DenseFfnSpec ffn;
  std::optional<std::string> gate{};  // [1,H]: its output is multiplied by sigmoid(x gate^T)
};

struct MoeFfnSpec {
  RouterSpec router;
  std::string router_weight;                         // [E,H]
  std::optional<VectorSlice> router_bias{};          // [E] added to the logits
  std::optional<VectorSlice> selection_bias{};       // [E] added to the scores for the choice only
  std::optional<std::string> router_noise_weight{};  // [E,H], noisy top-k only
  bool gate_on_input = false;                        // gate weights multiply the experts' inputs, not their outputs
  std::size_t intermediate = 0;                      // F
  ActivationSpec activation{};
  std::vector<FfnTensors> experts{};  // [E]
  std::optional<SharedExpertSpec> shared{};
  std::optional<std::size_t> capacity{};  // tokens of a sequence that an expert takes: the first ones sent to it
};

// Attention of a decoder's tokens to all of the encoder's output, which its keys and values are projections of.
struct CrossAttentionSpec {
  NormSpec norm;  // of the decoder's residual stream; the encoder's output has its own
  AttentionSpec attention;
};

struct LayerSpec {
  NormSpec input_norm;  // before attention
  AttentionSpec attention;
  std::optional<CrossAttentionSpec> cross{};  // between attention and FFN, in decoders that have an encoder
  NormSpec post_attention_norm;               // before the FFN
  std::variant<DenseFfnSpec, MoeFfnSpec> ffn;
  float residual_multiplier = 1.0F;  // of what attention and FFN add to the residual stream
};

enum class StackKind : std::uint8_t {
  decoder,  // a token attends to itself and to what its span has before it
  encoder,  // every token attends to all of the input
};

struct StackSpec {
  StackKind kind = StackKind::decoder;
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  std::optional<std::string> embedding{};  // [V,H]; none: the model's
};

// Added to the embedded tokens (Vaswani et al. 2017, section 3.5, sines first, then cosines): of the sequence's n-th
// token, counted from 1 and without padding tokens, the angles of position n + padding; nothing for padding tokens.
struct SinusoidalPositions {
  TokenId padding = 0;
};

// What starts an answer of a model whose prompt goes to an encoder.
struct DecoderStart {
  TokenId token = 0;                    // of position 0
  std::optional<TokenId> forced_bos{};  // the first new token, unless a request says otherwise
};

// Of a head that a checkpoint stores beside the embedding it is tied to.
constexpr char const* kStoredHead = "lm_head.weight";

struct ModelSpec {
  std::string family;                     // model_type of config.json
  std::size_t hidden = 0;                 // H
  std::size_t vocab = 0;                  // V
  std::size_t max_position = 0;           // tokens of context the checkpoint was made for
  bool goes_beyond_max_position = false;  // positions are relative: longer contexts have a meaning, too
  DType stored_dtype = DType::bf16;       // torch_dtype / dtype of the config
  std::string embedding;                  // [V,H]
  float embedding_multiplier = 1.0F;      // of the embedded tokens
  std::optional<SinusoidalPositions> sinusoidal_positions;
  std::vector<std::string> embedding_copies;  // [V,H] stored copies of it that may be there and are not read
  std::optional<WeightSlice> lm_head;         // [V,H]; none: the embedding is used (tied)
  std::optional<std::string> lm_head_bias;    // [V]
  float logit_multiplier = 1.0F;
  std::vector<StackSpec> stacks;              // a decoder; or an encoder, then its decoder
  std::optional<DecoderStart> decoder_start;  // with an encoder
  std::vector<std::string> skipped_prefixes;  // of tensors that may be there and are not for this program (layers that
                                              // predict further tokens)
  std::vector<TokenId> eos_ids;               // generation_config.json's, else config.json's
  // What generation_config.json wants for requests that do not say.
  std::optional<float> default_temperature;
  std::optional<float> default_top_p;
  std::optional<float> default_min_p;
  std::optional<float> default_repetition_penalty;
  std::optional<std::size_t> default_top_k;  // 0: all

  [[nodiscard]] StackSpec const& decoder() const { return stacks.back(); }
  [[nodiscard]] StackSpec const* encoder() const { return stacks.size() > 1 ? &stacks.front() : nullptr; }
  // Layers are numbered through all stacks: the decoder's begin here.
  [[nodiscard]] std::size_t first_decoder_layer() const { return encoder() ? encoder()->layers.size() : 0; }
};

// One layer and where it stands, through all stacks.
struct NumberedLayer {
  LayerSpec const* layer = nullptr;
  StackKind stack = StackKind::decoder;
  std::uint32_t number = 0;
  std::uint32_t moe_index = 0;  // of the MoE layers before it; its own if it is one
  std::size_t first_count = 0;  // of the expert counts of a sequence, those of its experts
};
std::vector<NumberedLayer> all_layers(ModelSpec const& spec);
// The same, with experts only.
std::vector<NumberedLayer> moe_layers(ModelSpec const& spec);
// The experts of all layers where they have a capacity: what has to be counted of a sequence.
std::size_t num_expert_counts(ModelSpec const& spec);

// What the checkpoint has to hold. Optional: the stored head of a tied model, rotary inv_freq buffers, ….
ExpectedTensors expected_tensors(ModelSpec const& spec);
// Numbers among the weights, however they are stored.
std::size_t num_parameters(ModelSpec const& spec);
// Of these, those that are not stored as plain numbers: form (form_of() in weight_slice.h) -> how many.
std::map<std::string, std::size_t> stored_forms(ModelSpec const& spec);
// The routed experts of all MoE layers, packed as `weights`, sent as `wire`.
ExpertModelSpec expert_model_spec(ModelSpec const& spec, WeightFormat weights, DType wire);

// The largest exchange of experts in steps of T tokens: rows, and experts of each. Where gate weights multiply inputs
// each (token, slot) is a row with one expert.
struct ExchangeShape {
  std::size_t rows = 0;
  std::size_t experts_per_row = 0;
};
ExchangeShape exchange_shape(ModelSpec const& spec, std::size_t tokens);

struct ModelOptions {
  std::optional<std::uint64_t> router_noise_seed;  // --router-noise: turns the noise of noisy_topk_moe on
};

// Reads config.json (and generation_config.json where there is one) of a model directory. Throws ModelError naming the
// file and the field: unknown family, missing or contradictory value, a field that is neither used nor known to be
// without effect.
ModelSpec read_model_spec(std::filesystem::path const& model_dir, ModelOptions const& options);

}  // namespace expertmesh
