// What most families' configs and tensor names have in common.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/model/config_reader.h"
#include "coordinator/model/families/stored_weights.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// What families default differently.
struct FamilyDefaults {
  double rope_theta = 10000.0;
  float norm_epsilon = 1e-6F;                // rms_norm_eps
  std::optional<std::size_t> head_dim = {};  // none: hidden_size / num_attention_heads
  double partial_rotary_factor = 1.0;
  bool partial_rotation = false;  // the family has a partial_rotary_factor
  bool rope_interleaved = false;
  bool tied = false;
};

// What a model may have, so that sizes, name lists and sums of parameters stay in range whatever a config says.
constexpr std::size_t kMostLayers = 1024;
constexpr std::size_t kMostVocabulary = std::size_t{1} << 24;
constexpr std::size_t kMostColumns = std::size_t{1} << 20;  // of a hidden state, an FFN, all heads together
constexpr std::size_t kMostExperts = 1024;                  // in a layer

// The activation called `name`, as `field` has it.
Activation activation_named(ConfigReader& config, std::string_view field, std::string const& name);
// Fields of training, bookkeeping and sampling that published configs carry and that change no logit.
void skip_what_has_no_effect(ConfigReader& config);

// The fields of every decoder-only family here: sizes, norms, RoPE in both spellings, activation, quantisation.
struct CommonFields {
  std::size_t layers, hidden, vocab, max_position;
  std::size_t num_heads, num_kv_heads, head_dim;
  RopeSpec rope;
  float epsilon;
  bool tied;
  ActivationSpec activation;
  StoredWeights weights;
};
CommonFields read_common_fields(ConfigReader& config, FamilyDefaults const& defaults);
// Without head_dim and RoPE: for families that read those themselves.
CommonFields read_sizes(ConfigReader& config, FamilyDefaults const& defaults);

// Which layers `sliding_window` is about, where neither layer_types nor a switch says otherwise.
enum class WindowRule : std::uint8_t {
  none,                          // the family has no window
  every_layer,                   // where the window is set
  from_max_window_layers,        // layers from max_window_layers on
  even_below_max_window_layers,  // layers 0, 2, 4… below max_window_layers
  even_layers,                   // layers 0, 2, 4…
};
struct WindowFields {
  WindowRule rule = WindowRule::none;
  bool needs_switch = false;      // a window counts where use_sliding_window is on
  bool obeys_layer_types = true;  // layer_types decides where it is there; else it has to agree with the rule
  // Of a config that does not say them; one that says null has no window.
  std::size_t window = 0;  // 0: none
  std::size_t max_window_layers = 28;
};
// [layers] what each layer's tokens attend to.
std::vector<AttentionSpan> read_spans(ConfigReader& config, std::size_t layers, WindowFields const& fields);

// E and K, checked against each other, from the first of the fields that is there.
struct RouterFields {
  std::vector<std::string_view> num_experts = {"num_local_experts", "num_experts"};
  std::vector<std::string_view> experts_per_token = {"num_experts_per_tok"};
  std::string_view scoring = "softmax";  // what scoring_func must say if it is there
};
RouterSpec read_router_size(ConfigReader& config, RouterFields const& fields = {});
// The layers that hold experts by mlp_only_layers and decoder_sparse_step. [layers]
std::vector<bool> read_sparse_layers(ConfigReader& config, std::size_t layers);

// A ModelSpec with everything but its layers.
ModelSpec model_of(CommonFields const& fields);
std::string layer_prefix(std::size_t layer);  // "model.layers.3."

// Norms and attention of "model.layers.N."; the FFN is left to the family.
struct LayerOptions {
  bool qkv_bias = false;
  bool o_bias = false;
  std::optional<QkNormScope> qk_norm = std::nullopt;
  AttentionSpan span = {};
};
LayerSpec layer_of(CommonFields const& fields, std::size_t layer, LayerOptions const& options);

// "<prefix>gate_proj.weight", … and their biases.
struct DenseFfnOptions {
  std::size_t intermediate = 0;
  bool bias = false;
};
DenseFfnSpec dense_ffn_of(CommonFields const& fields, std::string const& prefix, DenseFfnOptions const& options);
// Experts "<prefix>experts.E.<gate>.weight", …
struct ExpertNames {
  char const* gate;
  char const* up;
  char const* down;
};
std::vector<FfnTensors> experts_of(CommonFields const& fields, std::string const& prefix, std::size_t num_experts,
                                   ExpertNames names);

}  // namespace expertmesh
