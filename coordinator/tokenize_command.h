// `expertmesh tokenize DIR`: a tokenizer on its own, without weights or config.json, for JSON lines in a pipe.
#pragma once
#include <cstdint>
#include <filesystem>
#include <iosfwd>

namespace expertmesh {

struct TokenizeOptions {
  std::filesystem::path model_dir;
  bool decode = false;  // ids to text
  bool stream = false;  // ids to the pieces that a streamed answer has
};

// encode: {"text", "add_special_tokens": true} -> {"ids"}
// decode: {"ids", "skip_special_tokens": true} -> {"text"}
// stream: the same -> {"pieces": one for each id, "tail"}
// A line with an id outside the vocabulary is answered with {"error"}.
// Throws ModelError if the directory has no tokenizer, or not one that is supported.
void tokenize(TokenizeOptions const& options, std::istream& in, std::ostream& out);

}  // namespace expertmesh
