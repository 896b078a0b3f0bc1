#include "coordinator/text/token_model.h"

#include "coordinator/text/bpe.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/unigram.h"

namespace expertmesh {

std::unique_ptr<TokenModel const> TokenModel::from_json(Json const& model, bool byte_level) {
  std::string const where = "model";
  if (!model.is_object()) tokenizer_error(where, "not an object");
  // Files from before there was the field hold what only that type has.
  auto const type = json_field_or<std::string>(model, "type",
                                               model.contains("merges")   ? "BPE"
                                               : model.contains("unk_id") ? "Unigram"
                                                                          : "",
                                               where);
  if (type == "BPE") return std::make_unique<Bpe const>(model, byte_level);
  if (type == "Unigram") return std::make_unique<Unigram const>(model, byte_level);
  tokenizer_error(where, "type '" + type + "' is not supported");
}

void TokenModel::add_token(std::string const& token, TokenId id) {
  if (id < 0) tokenizer_error("model", "token '" + token + "' has a negative id");
  if (id > kLargestId) tokenizer_error("model", "token id " + std::to_string(id) + " is out of all proportion");
  if (static_cast<std::size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<std::size_t>(id) + 1);
  if (tokens_[id] && *tokens_[id] != token)
    tokenizer_error("model", "tokens '" + *tokens_[id] + "' and '" + token + "' have the same id");
  tokens_[id] = token;
}

}  // namespace expertmesh
