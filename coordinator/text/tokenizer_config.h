// What tokenizer_config.json adds to a tokenizer, as transformers 5 reads it.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/added_tokens.h"

namespace expertmesh {

struct TokenizerConfig {
  bool clean_up_spaces = false;
  // Where one of them is given, they and not the post-processor say which tokens go around a text.
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<std::string> bos;
  std::optional<std::string> eos;
  bool legacy = false;  // SentencePiece: every part between added tokens gets a mark before it, not only the first
  std::vector<AddedToken> added;  // added_tokens_decoder: goes before tokens of the same content

  // Also from special_tokens_map.json. Nothing where the files are not there; ModelError where they are malformed.
  static TokenizerConfig load(std::filesystem::path const& model_dir);
};

}  // namespace expertmesh
