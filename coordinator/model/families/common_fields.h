// What most families' configs and tensor names have in common.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/model/config_reader.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// What `sliding_window` means.
enum class WindowRule : std::uint8_t {
  none,            // the family has no window
  in_every_layer,  // where it is set
  switched_off,    // nothing unless `use_sliding_window` is on, which is refused
};

// What families default differently.
struct FamilyDefaults {
  double rope_theta = 10000.0;
  float rms_norm_eps = 1e-6F;
  WindowRule window = WindowRule::none;
};

constexpr std::size_t kMostColumns = std::size_t{1} << 20;  // of a hidden state, an FFN, all heads together

// The fields of every decoder-only family here: sizes, norms, RoPE in both spellings, window, activation.
struct CommonFields {
  std::size_t layers, hidden, vocab, max_position;
  std::size_t num_heads, num_kv_heads, head_dim;
  AttentionSpan span;
  RopeSpec rope;
  float epsilon;
  bool tied;
};
CommonFields read_common_fields(ConfigReader& config, FamilyDefaults const& defaults);

// E and K, checked against each other. E is num_local_experts or num_experts.
RouterSpec read_router_size(ConfigReader& config);

// A ModelSpec with everything but its layers.
ModelSpec model_of(CommonFields const& fields);
std::string layer_prefix(std::size_t layer);  // "model.layers.3."
// Norms and attention of "model.layers.N."; the FFN is left to the family. qk_norm: q_norm and k_norm over each head.
struct LayerOptions {
  bool qk_norm = false;
};
LayerSpec layer_of(CommonFields const& fields, std::size_t layer, LayerOptions options);
DenseFfnSpec dense_ffn_of(std::string const& prefix, std::size_t intermediate);  // "<prefix>gate_proj.weight", …
// Experts "<prefix>experts.E.<gate>.weight", …
struct ExpertNames {
  char const* gate;
  char const* up;
  char const* down;
};
std::vector<FfnTensors> experts_of(std::string const& prefix, std::size_t num_experts, ExpertNames names);

}  // namespace expertmesh
