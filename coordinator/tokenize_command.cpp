#include "coordinator/tokenize_command.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "common/base/error.h"
#include "coordinator/json_lines.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

std::vector<TokenId> ids_of(Tokenizer const& tokenizer, Json const& line) {
  if (!line.contains("ids")) throw BadLine("no field 'ids'");
  if (!line["ids"].is_array()) throw BadLine("field 'ids' is not a list");
  std::vector<TokenId> ids;
  ids.reserve(line["ids"].size());
  for (auto const& id : line["ids"]) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= tokenizer.vocab_size())
      throw BadLine("field 'ids' holds " + id.dump() + ", which is no token id from 0 to " +
                    std::to_string(tokenizer.vocab_size() - 1));
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

Json encoded(Tokenizer const& tokenizer, Json const& line) {
  check_fields(line, {"text", "add_special_tokens"});
  return {{"ids", tokenizer.encode(text_field(line, "text"), flag_field(line, "add_special_tokens", true))}};
}

Json decoded(Tokenizer const& tokenizer, Json const& line) {
  check_fields(line, {"ids", "skip_special_tokens"});
  return {{"text", tokenizer.decode(ids_of(tokenizer, line), flag_field(line, "skip_special_tokens", true))}};
}

Json streamed(Tokenizer const& tokenizer, Json const& line) {
  check_fields(line, {"ids", "skip_special_tokens"});
  StreamDetokenizer stream(tokenizer, flag_field(line, "skip_special_tokens", true));
  Json pieces = Json::array();
  for (TokenId id : ids_of(tokenizer, line)) pieces.push_back(stream.push(id));
  return {{"pieces", std::move(pieces)}, {"tail", stream.finish()}};
}

}  // namespace

void tokenize(TokenizeOptions const& options, std::istream& in, std::ostream& out) {
  auto const tokenizer = Tokenizer::load(options.model_dir);
  if (!tokenizer) throw ModelError(options.model_dir.string() + ": neither tokenizer.json nor tokenizer.model");
  auto const answer = options.stream ? streamed : options.decode ? decoded : encoded;
  answer_json_lines(in, out, [&](Json const& line) { return answer(*tokenizer, line); });
}

}  // namespace expertmesh
