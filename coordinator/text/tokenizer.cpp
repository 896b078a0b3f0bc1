#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <fstream>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

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

// The config's tokens go before those of the same content. What the model's vocabulary has keeps its id there.
std::vector<AddedToken> with_configured(std::vector<AddedToken> tokens, TokenizerConfig const& config,
                                        TokenModel const& model) {
  for (auto const& token : config.added) {
    auto const same = std::ranges::find(tokens, token.content, &AddedToken::content);
    if (same == tokens.end())
      tokens.push_back(token);
    else
      *same = token;
  }
  for (auto& token : tokens) {
    token.id = model.id_of(token.content).value_or(token.id);
    auto const id = static_cast<std::size_t>(token.id);
    if (id < model.tokens().size() && model.tokens()[id] && *model.tokens()[id] != token.content)
      tokenizer_error("added_tokens", "token '" + token.content + "' has id " + std::to_string(token.id) +
                                          ", which is that of '" + *model.tokens()[id] + "'");
  }
  return tokens;
}

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerParts parts, TokenizerConfig const& config)
      : normalizer(std::move(parts.normalizer)),
        pre_tokenizer(std::move(parts.pre_tokenizer)),
        model(std::move(parts.model)),
        added(with_configured(std::move(parts.added), config, *model), normalizer),
        decoder(std::move(parts.decoder)),
        surrounding(std::move(parts.surrounding)) {
    TokenId largest = static_cast<TokenId>(model->tokens().size()) - 1;
    for (auto const& token : added.all()) {
      if (token.id > kLargestId)
        tokenizer_error("added_tokens", "token id " + std::to_string(token.id) + " is out of all proportion");
      largest = std::max(largest, token.id);
    }
    strings.resize(static_cast<std::size_t>(largest) + 1);
    for (std::size_t id = 0; id < model->tokens().size(); ++id)
      if (auto const& token = model->tokens()[id]) strings[id] = &*token;
    for (auto const& token : added.all()) strings[token.id] = &token.content;
    if (config.add_bos || config.add_eos) surround(config);
    for (auto const* side : {&surrounding.before, &surrounding.after})
      for (TokenId id : *side)
        if (id < 0 || id > largest || !strings[id])
          tokenizer_error("post_processor", "token id " + std::to_string(id) + " is not in the vocabulary");
  }

  void surround(TokenizerConfig const& config) {
    auto const ids_of = [&](std::optional<std::string> const& token, char const* name) -> std::vector<TokenId> {
      if (!token) return {};
      for (auto const& known : added.all())
        if (known.content == *token) return {known.id};
      if (auto const id = model->id_of(*token)) return {*id};
      throw ModelError("tokenizer_config.json: " + std::string(name) + " '" + *token + "' is not in the vocabulary");
    };
    surrounding = {};
    if (config.add_bos.value_or(false)) surrounding.before = ids_of(config.bos, "bos_token");
    if (config.add_eos.value_or(false)) surrounding.after = ids_of(config.eos, "eos_token");
  }

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<TokenModel const> model;
  AddedTokens added;
  TokenDecoder decoder;
  PostProcessor surrounding;
  std::vector<std::string const*> strings;  // by id; null where there is no token
};

TokenizerParts TokenizerParts::from_json(std::filesystem::path const& path, TokenizerConfig const& config) {
  Json const file = parse(path);
  PreTokenizer pre_tokenizer(part(file, "pre_tokenizer"));
  auto model = TokenModel::from_json(json_part(file, "model", "top level"), pre_tokenizer.byte_level());
  // transformers no longer cleans up what BPE models give: it would spoil code.
  bool const clean_up = config.clean_up_spaces && !dynamic_cast<Bpe const*>(model.get());
  return {.normalizer = Normalizer(part(file, "normalizer")),
          .pre_tokenizer = std::move(pre_tokenizer),
          .model = std::move(model),
          .added = AddedTokens::read(part(file, "added_tokens")),
          .decoder = TokenDecoder(part(file, "decoder"), clean_up),
          .surrounding = PostProcessor::from_json(part(file, "post_processor"))};
}

std::unique_ptr<Tokenizer> Tokenizer::load(std::filesystem::path const& model_dir) {
  bool const json = std::filesystem::exists(model_dir / "tokenizer.json");
  if (!json && !std::filesystem::exists(model_dir / "tokenizer.model")) return nullptr;
  auto const config = TokenizerConfig::load(model_dir);
  auto parts = json ? TokenizerParts::from_json(model_dir / "tokenizer.json", config)
                    : TokenizerParts::from_sentencepiece(model_dir / "tokenizer.model", config);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::make_unique<Impl const>(std::move(parts), config)));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl const> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<TokenId> ids;
  if (add_special_tokens) ids = impl_->surrounding.before;
  for (auto& section : impl_->added.split(repaired_utf8(text), impl_->normalizer)) {
    if (auto const* id = std::get_if<TokenId>(&section.part)) {
      ids.push_back(*id);
      continue;
    }
    Pieces const pieces = impl_->pre_tokenizer(std::get<std::string>(section.part), section.at_start);
    for (auto const& piece : pieces.list) impl_->model->encode(piece.text, ids);
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
