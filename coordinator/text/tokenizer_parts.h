// What a tokenizer is made of, from either kind of file.
#pragma once
#include <filesystem>
#include <memory>
#include <vector>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/token_model.h"
#include "coordinator/text/tokenizer_config.h"

namespace expertmesh {

struct TokenizerParts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<TokenModel const> model;
  std::vector<AddedToken> added;
  TokenDecoder decoder;
  PostProcessor surrounding;

  // Throw ModelError naming the field for what is malformed or not supported.
  static TokenizerParts from_json(std::filesystem::path const& file, TokenizerConfig const& config);
  // As SentencePiece itself encodes. Control pieces in the text are tokens. Without add_bos_token and add_eos_token in
  // the config, BPE models put BOS before a text, Unigram models EOS behind it.
  static TokenizerParts from_sentencepiece(std::filesystem::path const& file, TokenizerConfig const& config);
};

}  // namespace expertmesh
