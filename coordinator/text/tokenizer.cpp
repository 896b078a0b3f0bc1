#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <fstream>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

// The post-processor's tokens around a single text.
struct Surrounding {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
};

void read_template(Json const& spec, Surrounding& out) {
  std::string const where = "post_processor";
  auto const& tokens = json_part(spec, "special_tokens", where);
  bool seen_text = false;
  for (auto const& item : json_part(spec, "single", where)) {
    if (item.is_object() && item.contains("Sequence")) {
      if (seen_text) tokenizer_error(where, "the text stands twice in the template");
      seen_text = true;
      continue;
    }
    auto const name = json_field<std::string>(json_part(item, "SpecialToken", where), "id", where);
    auto& side = seen_text ? out.after : out.before;
    for (auto const& id : json_part(json_part(tokens, name.c_str(), where), "ids", where))
      side.push_back(json_value<TokenId>(id, "ids", where));
  }
  if (!seen_text) tokenizer_error(where, "the template leaves out the text");
}

void read_post_processor(Json const& spec, Surrounding& out) {
  if (spec.is_null()) return;
  std::string const where = "post_processor";
  auto const type = json_field<std::string>(spec, "type", where);
  if (type == "Sequence") {
    for (auto const& step : json_part(spec, "processors", where)) read_post_processor(step, out);
  } else if (type == "TemplateProcessing") {
    read_template(spec, out);
  } else if (type != "ByteLevel") {  // ByteLevel moves offsets only
    tokenizer_error(where, "kind '" + type + "' is not supported");
  }
}

Json const& part(Json const& file, char const* field) {
  static Json const none;
  return file.contains(field) ? file[field] : none;
}

// No tokenizer nests its parts deeper; what reads them may recurse.
constexpr int kMaxDepth = 32;

Json parse(std::filesystem::path const& path) {
  std::ifstream in(path);
  auto const check_depth = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) tokenizer_error("top level", "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    return true;
  };
  Json file = Json::parse(in, check_depth, false);
  if (!file.is_object()) throw ModelError("tokenizer.json: not a JSON object");
  return file;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(Json const& file)
      : normalizer(part(file, "normalizer")),
        pre_tokenizer(part(file, "pre_tokenizer")),
        model(json_part(file, "model", "top level")),
        added(part(file, "added_tokens"), normalizer),
        decoder(part(file, "decoder")) {
    read_post_processor(part(file, "post_processor"), surrounding);
    TokenId largest = -1;
    for (auto const& [token, id] : model.vocabulary()) largest = std::max(largest, id);
    for (auto const& token : added.all()) largest = std::max(largest, token.id);
    if (largest > 1 << 24)
      tokenizer_error("model", "token id " + std::to_string(largest) + " is out of all proportion");
    strings.resize(static_cast<std::size_t>(largest) + 1);
    for (auto const& [token, id] : model.vocabulary()) strings[id] = &token;
    for (auto const& token : added.all()) strings[token.id] = &token.content;
    for (auto const* side : {&surrounding.before, &surrounding.after})
      for (TokenId id : *side)
        if (id < 0 || id > largest || !strings[id])
          tokenizer_error("post_processor", "token id " + std::to_string(id) + " is not in the vocabulary");
  }

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  AddedTokens added;
  TokenDecoder decoder;
  Surrounding surrounding;
  std::vector<std::string const*> strings;  // by id; null where there is no token
};

std::unique_ptr<Tokenizer> Tokenizer::load(std::filesystem::path const& model_dir) {
  auto const path = model_dir / "tokenizer.json";
  if (!std::filesystem::exists(path)) return nullptr;
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::make_unique<Impl const>(parse(path))));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl const> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<TokenId> ids;
  if (add_special_tokens) ids = impl_->surrounding.before;
  for (auto& section : impl_->added.split(repaired_utf8(text), impl_->normalizer)) {
    if (auto const* id = std::get_if<TokenId>(&section.piece)) {
      ids.push_back(*id);
      continue;
    }
    for (auto const& piece : impl_->pre_tokenizer(std::move(std::get<std::string>(section.piece)), section.at_start))
      impl_->model.encode(piece, ids);
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->surrounding.after.begin(), impl_->surrounding.after.end());
  return ids;
}

std::string const* Tokenizer::token_string(TokenId id, bool skip_special_tokens) const {
  if (id < 0 || static_cast<std::size_t>(id) >= impl_->strings.size()) return nullptr;
  if (skip_special_tokens)
    if (auto const* token = impl_->added.find(id); token && token->special) return nullptr;
  return impl_->strings[id];
}

TokenDecoder const& Tokenizer::decoder() const {
  return impl_->decoder;
}

std::string Tokenizer::decode(std::span<TokenId const> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  for (TokenId id : ids)
    if (auto const* token = token_string(id, skip_special_tokens)) tokens.push_back(*token);
  return impl_->decoder.whole(tokens);
}

std::size_t Tokenizer::vocab_size() const {
  return impl_->strings.size();
}

std::string Tokenizer::token_bytes(TokenId id) const {
  auto const* token = token_string(id, false);
  return token ? impl_->decoder.bytes_of(*token) : std::string();
}

std::string Tokenizer::token_text(TokenId id) const {
  return repaired_utf8(token_bytes(id));
}

}  // namespace expertmesh
