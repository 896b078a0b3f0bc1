// What the encoder-decoder families' configs have in common.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "coordinator/model/families/common_fields.h"

namespace expertmesh {

struct EncoderDecoderDefaults {
  TokenId padding = 0;
  TokenId end_of_sequence = 1;
  // Where there is no decoder_start_token_id: the first of them that is there, else this.
  std::vector<std::string_view> start_fields{};
  TokenId start = 0;
};
struct EncoderDecoderFields {
  std::size_t hidden, vocab, num_experts;
  bool tied;
  TokenId padding;
  DecoderStart start;
  std::vector<TokenId> end_of_sequence;
};
// d_model, vocab_size, num_experts, tie_word_embeddings, special tokens, and what has to be said of the routers' type.
EncoderDecoderFields read_encoder_decoder(ConfigReader& config, EncoderDecoderDefaults const& defaults);

// A whole number from 0 to `most`; `fallback` where the field is absent.
std::size_t index_or(ConfigReader& config, std::string_view field, std::size_t fallback, std::size_t most = kMostCount);

// A ModelSpec with two stacks and no layers. prefix: of "shared", "encoder." and "decoder.". Tied, one embedding serves
// both stacks and the head; else each has its own.
ModelSpec model_of(EncoderDecoderFields const& fields, std::string const& prefix, std::string_view final_norm,
                   float epsilon, NormKind norm);

}  // namespace expertmesh
