// Hunyuan-A13B (Tencent 2025): q/k norm after the rotation, a shared expert of the routed ones' size.
#include <algorithm>

#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

// A count, or a list of one for each layer, which must all be the same.
std::size_t uniform_count(ConfigReader& config, std::string_view field, std::size_t layers, std::size_t fallback) {
  if (!config.is_list(field)) return config.count_or(field, fallback);
  auto const counts = config.indices(field);
  if (counts.size() != layers)
    config.refuse(field, std::to_string(counts.size()) + " numbers for " + std::to_string(layers) + " layers");
  if (counts.front() == 0 || std::ranges::adjacent_find(counts, std::not_equal_to{}) != counts.end())
    config.refuse(field, "layers that differ are not supported");
  return counts.front();
}

}  // namespace

ModelSpec build_hunyuan_v1_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  FamilyDefaults defaults{.rope_theta = 10000.0, .norm_epsilon = 1e-5F};
  defaults.head_dim = config.optional_count("attention_head_dim");
  CommonFields const f = read_common_fields(config, defaults);
  RouterSpec router{.num_experts = uniform_count(config, "num_experts", f.layers, 1),
                    .experts_per_token = uniform_count(config, "moe_topk", f.layers, 1)};
  if (router.num_experts > kMostExperts)
    config.refuse("num_experts", std::to_string(router.num_experts) + " is more than supported here");
  if (router.experts_per_token > router.num_experts) config.refuse("moe_topk", "is more than num_experts");
  bool const bias = config.flag_or("attention_bias", false);
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const shared_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const intermediate = uniform_count(config, "moe_intermediate_size", f.layers, shared_intermediate);
  if (intermediate != shared_intermediate) config.refuse("moe_intermediate_size", "differs from intermediate_size");
  if (uniform_count(config, "num_shared_expert", f.layers, 1) != 1)
    config.refuse("num_shared_expert", "only 1 is supported");
  for (auto const field : {"use_qk_norm", "use_mixed_mlp_moe", "norm_topk_prob", "use_rotary_pos_emb"})
    if (!config.flag_or(field, true)) config.refuse(field, "false is not supported");
  if (auto const type = config.text_or("norm_type", "rms"); type != "rms")
    config.refuse("norm_type", "'" + type + "' is not supported");
  if (!config.flag_or("use_cla", false)) config.without_effect({"cla_share_factor"});
  config.without_effect({"eod_token_id",
                         "capacity_factor",
                         "moe_drop_tokens",
                         "moe_random_routing_dropped_token",
                         "pool_type",
                         "org_vocab_size",
                         "im_start_id",
                         "im_end_id",
                         "im_newline_id",
                         "text_start_id",
                         "text_end_id",
                         "image_token_id",
                         "video_start_id",
                         "video_end_id",
                         "mask_init_id",
                         "num_media_embeds",
                         "vit_type",
                         "vit_patch",
                         "vit_token",
                         "vit_input_resolution",
                         "vit_mapping_type",
                         "vit_norm_type",
                         "vit_add_patchemb_bias",
                         "vit_remove_prenorm",
                         "vit_used_rms_norm",
                         "anyres_vit_two_views",
                         "anyres_vit_max_image_size",
                         "anyres_pooling_size",
                         "max_image_size",
                         "add_classification_head",
                         "class_num",
                         "dense_list",
                         "skip_cls_token",
                         "vocab_size_padded"});
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    auto& projection = std::get<GroupedProjection>(layer.attention.projection);
    auto const norm = [&](char const* name) {
      return QkNormSpec{.weight = layer_prefix(l) + "self_attn." + name + ".weight",
                        .epsilon = f.epsilon,
                        .scope = QkNormScope::head,
                        .after_rope = true};
    };
    projection.q_norm = norm("query_layernorm");
    projection.k_norm = norm("key_layernorm");
    std::string const prefix = layer_prefix(l) + "mlp.";
    layer.ffn = MoeFfnSpec{.router = router,
                           .router_weight = prefix + "gate.wg.weight",
                           .intermediate = intermediate,
                           .activation = f.activation,
                           .experts = experts_of(f, prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"}),
                           .shared = SharedExpertSpec{
                               .ffn = dense_ffn_of(f, prefix + "shared_mlp.", {.intermediate = shared_intermediate})}};
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
