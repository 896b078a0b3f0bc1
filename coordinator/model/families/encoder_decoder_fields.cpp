#include "coordinator/model/families/encoder_decoder_fields.h"

#include <algorithm>

namespace expertmesh {
namespace {

TokenId token_or(ConfigReader& config, std::string_view field, TokenId fallback, std::size_t vocab) {
  std::size_t const id = index_or(config, field, static_cast<std::size_t>(fallback));
  if (id >= vocab)
    config.refuse(field, std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocab) + " tokens");
  return static_cast<TokenId>(id);
}

}  // namespace

std::size_t index_or(ConfigReader& config, std::string_view field, std::size_t fallback, std::size_t most) {
  std::size_t const value = config.has(field) ? config.index(field) : fallback;
  if (value > most)
    config.refuse(field, std::to_string(value) + " is more than the " + std::to_string(most) + " supported here");
  return value;
}

EncoderDecoderFields read_encoder_decoder(ConfigReader& config, EncoderDecoderDefaults const& defaults) {
  EncoderDecoderFields f{};
  f.hidden = config.count("d_model", kMostColumns);
  f.vocab = config.count("vocab_size", kMostVocabulary);
  f.num_experts = config.count("num_experts", kMostExperts);
  f.tied = config.flag_or("tie_word_embeddings", true);
  if (!config.flag_or("is_encoder_decoder", true)) config.refuse("is_encoder_decoder", "this family is one");
  f.padding = token_or(config, "pad_token_id", defaults.padding, f.vocab);
  TokenId start = defaults.start;
  for (std::string_view field : defaults.start_fields)
    if (config.has(field)) {
      start = token_or(config, field, start, f.vocab);
      break;
    }
  f.start.token = token_or(config, "decoder_start_token_id", start, f.vocab);
  if (config.has("forced_bos_token_id")) f.start.forced_bos = token_or(config, "forced_bos_token_id", 0, f.vocab);
  f.end_of_sequence = {defaults.end_of_sequence};
  std::string const router_dtype = config.text_or("router_dtype", "float32");
  if (router_dtype != "float32")
    config.refuse("router_dtype", "routers compute in float32 here, not in " + router_dtype);
  config.must_be_off("quantization_config");
  config.must_be_off("forced_eos_token_id");
  config.without_effect({
      "router_ignore_padding_tokens",  // there is no padding
      "router_jitter_noise",           // multiplies the input in training only
      "add_cross_attention",           // about models built by hand
      "initializer_factor",
      "init_std",
      "output_past",
      "task_specific_params",
  });
  skip_what_has_no_effect(config);
  return f;
}

ModelSpec model_of(EncoderDecoderFields const& f, std::string const& prefix, std::string_view final_norm, float epsilon,
                   NormKind norm) {
  ModelSpec spec;
  spec.hidden = f.hidden;
  spec.vocab = f.vocab;
  spec.embedding = prefix + "shared.weight";
  spec.eos_ids = f.end_of_sequence;
  std::erase_if(spec.eos_ids, [&](TokenId id) { return static_cast<std::size_t>(id) >= f.vocab; });
  spec.decoder_start = f.start;
  if (!f.tied) {
    spec.lm_head = WeightSlice{"lm_head.weight"};
    spec.embedding_copies.push_back(spec.embedding);  // of neither stack
  }
  for (auto const& [kind, name] :
       {std::pair(StackKind::encoder, "encoder."), std::pair(StackKind::decoder, "decoder.")}) {
    std::string const stack = prefix + name;
    NormSpec norm_spec{.weight = stack + std::string(final_norm) + ".weight", .epsilon = epsilon, .kind = norm};
    if (norm == NormKind::layer) norm_spec.bias = stack + std::string(final_norm) + ".bias";
    StackSpec& out =
        spec.stacks.emplace_back(StackSpec{.kind = kind, .layers = {}, .final_norm = std::move(norm_spec)});
    if (f.tied)
      spec.embedding_copies.push_back(stack + "embed_tokens.weight");
    else
      out.embedding = stack + "embed_tokens.weight";
  }
  return spec;
}

}  // namespace expertmesh
