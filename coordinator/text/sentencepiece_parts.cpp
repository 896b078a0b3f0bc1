#include <algorithm>

#include "coordinator/text/bpe.h"
#include "coordinator/text/byte_trie.h"
#include "coordinator/text/charsmap.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/sentencepiece_model.h"
#include "coordinator/text/split.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/unigram.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

using Model = SentencePieceModel;
using PieceType = Model::Piece::Type;

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581, a space

ByteTrie user_defined(Model const& model) {
  std::vector<std::pair<std::string, std::uint32_t>> entries;
  for (std::size_t id = 0; id < model.pieces.size(); ++id)
    if (model.pieces[id].type == PieceType::user_defined)
      entries.emplace_back(model.pieces[id].text, static_cast<std::uint32_t>(id));
  return ByteTrie(std::move(entries));
}

std::size_t longest_prefix(ByteTrie const& trie, std::string_view text) {
  std::size_t length = 0;
  if (trie.starts(text[0])) trie.prefixes(text, [&](std::size_t found, std::uint32_t) { length = found; });
  return length;
}

// SentencePiece's normalisation, but for the mark that it puts before a text: user-defined pieces stay as they are, the
// longest sequence of the charsmap is replaced, spaces become marks, superfluous ones go.
class SentencePieceNormalizer {
 public:
  explicit SentencePieceNormalizer(Model const& model)
      : user_defined_(user_defined(model)), removes_spaces_(model.remove_extra_whitespaces) {
    if (!model.charsmap.empty())
      charsmap_.emplace(model.charsmap, "tokenizer.model: normalizer_spec.precompiled_charsmap");
  }

  std::string operator()(std::string const& text) const {
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    bool after_space = removes_spaces_;  // what comes next is superfluous if it is a space
    for (std::string_view rest = text; !rest.empty();) {
      auto const [part, length] = first_part(rest);
      rest.remove_prefix(length);
      for (char c : part) {
        if (c != ' ')
          out += c;
        else if (!(after_space && removes_spaces_))
          out += kMark;
        after_space = c == ' ';
      }
    }
    while (removes_spaces_ && out.ends_with(kMark)) out.erase(out.size() - kMark.size());
    return out;
  }

 private:
  [[nodiscard]] std::pair<std::string_view, std::size_t> first_part(std::string_view text) const {
    if (std::size_t const length = longest_prefix(user_defined_, text)) return {text.substr(0, length), length};
    if (charsmap_)
      if (auto const found = charsmap_->longest(text)) return {found->text, found->length};
    std::size_t const length = character_length(text);
    return {text.substr(0, length), length};
  }
  ByteTrie user_defined_;
  std::optional<Charsmap> charsmap_;
  bool removes_spaces_;
};

// Every way to make a piece of two others is a merge; the piece's score ranks them.
std::unique_ptr<TokenModel const> bpe_of(Model const& model) {
  std::vector<std::pair<std::string, TokenId>> vocabulary;
  StringTable mergeable;
  std::vector<float> scores;
  Bpe::Options options{.unknown = model.pieces[model.unknown].text,
                       .byte_fallback = model.byte_fallback,
                       .fuse_unknown = true,
                       .ignore_merges = false,
                       .byte_level = false,
                       .atoms = {}};
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    auto const& piece = model.pieces[id];
    vocabulary.emplace_back(piece.text, static_cast<TokenId>(id));
    if (piece.type == PieceType::user_defined) options.atoms.push_back(piece.text);
    if (piece.type != PieceType::normal) continue;
    mergeable.put(piece.text, static_cast<TokenId>(id));
    scores.push_back(piece.score);
  }
  std::ranges::sort(scores, std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<Bpe::Merge> merges;
  for (auto const& piece : model.pieces) {
    if (piece.type != PieceType::normal) continue;
    auto const rank = std::ranges::lower_bound(scores, piece.score, std::greater<>()) - scores.begin();
    std::string_view const text = piece.text;
    for (std::size_t cut = character_length(text); cut < text.size(); cut += character_length(text.substr(cut)))
      if (mergeable.find(text.substr(0, cut)) && mergeable.find(text.substr(cut)))
        merges.push_back(
            {std::string(text.substr(0, cut)), std::string(text.substr(cut)), static_cast<std::uint32_t>(rank)});
  }
  return std::make_unique<Bpe const>(vocabulary, merges, options);
}

std::unique_ptr<TokenModel const> unigram_of(Model const& model) {
  float least = 0;
  float most = 0;
  bool any = false;
  for (auto const& piece : model.pieces) {
    if (piece.type != PieceType::normal) continue;
    least = any ? std::min(least, piece.score) : piece.score;
    most = any ? std::max(most, piece.score) : piece.score;
    any = true;
  }
  std::vector<Unigram::Entry> entries;
  for (auto const& piece : model.pieces) {
    bool const own = piece.type == PieceType::user_defined;
    // A user-defined piece beats every other way to cut its text.
    double const score = own ? static_cast<double>(static_cast<float>(piece.text.size()) * most) - 0.1 : piece.score;
    entries.push_back({piece.text, score, own || piece.type == PieceType::normal});
  }
  return std::make_unique<Unigram const>(entries, Unigram::Options{.unknown = model.unknown,
                                                                   .least_score = least,
                                                                   .byte_fallback = model.byte_fallback,
                                                                   .single_precision = true,
                                                                   .byte_level = false});
}

std::vector<PreTokenizer::Step> pre_tokenizer_of(Model const& model, bool legacy) {
  std::vector<PreTokenizer::Step> steps;
  if (model.add_dummy_prefix)
    steps.emplace_back([legacy](Pieces::Piece const& piece, Pieces& out) {
      if (piece.at_start || legacy)
        out.add_made(std::string(kMark) + std::string(piece.text), piece.at_start);
      else
        out.add(piece.text, piece.at_start);
    });
  if (model.type == Model::Type::bpe)
    steps.emplace_back([trie = user_defined(model)](Pieces::Piece const& piece, Pieces& out) {
      std::vector<RegexPattern::Match> matches;
      for (std::size_t at = 0; at < piece.text.size();) {
        std::size_t const length = longest_prefix(trie, piece.text.substr(at));
        if (length > 0) matches.push_back({at, at + length});
        at += std::max<std::size_t>(length, 1);
      }
      split(piece, matches, SplitBehavior::isolated, false, out);
    });
  return steps;
}

}  // namespace

TokenizerParts TokenizerParts::from_sentencepiece(std::filesystem::path const& file, TokenizerConfig const& config) {
  Model const model = Model::load(file);
  bool const bpe = model.type == Model::Type::bpe;
  if (!bpe && model.type != Model::Type::unigram)
    refuse_sentencepiece("trainer_spec.model_type: only BPE and Unigram are supported");
  if (model.whitespace_is_suffix) refuse_sentencepiece("trainer_spec.treat_whitespace_as_suffix is not supported");
  if (!model.escape_whitespaces) refuse_sentencepiece("normalizer_spec.escape_whitespaces false is not supported");
  if (model.has_denormalizer) refuse_sentencepiece("denormalizer_spec is not supported");
  std::vector<AddedToken> added;
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    auto const& piece = model.pieces[id];
    if (piece.type == PieceType::unused) refuse_sentencepiece("unused pieces ('" + piece.text + "') are not supported");
    if (piece.type != PieceType::control && piece.type != PieceType::unknown) continue;
    AddedToken token;
    token.id = static_cast<TokenId>(id);
    token.content = piece.text;
    token.special = true;
    added.push_back(std::move(token));
  }
  Json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kMark}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  std::size_t const leading = model.remove_extra_whitespaces ? 1 << 20 : model.add_dummy_prefix ? 1 : 0;
  if (leading > 0) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", leading}, {"stop", 0}});
  PostProcessor surrounding;
  if (bpe && model.bos) surrounding.before = {*model.bos};
  if (!bpe && model.eos) surrounding.after = {*model.eos};
  return {.normalizer = Normalizer(SentencePieceNormalizer(model)),
          .pre_tokenizer = PreTokenizer(pre_tokenizer_of(model, config.legacy)),
          .model = bpe ? bpe_of(model) : unigram_of(model),
          .added = std::move(added),
          .decoder = TokenDecoder({{"type", "Sequence"}, {"decoders", decoders}}, config.clean_up_spaces && !bpe),
          .surrounding = std::move(surrounding)};
}

}  // namespace expertmesh
