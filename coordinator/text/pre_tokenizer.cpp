#include "coordinator/text/pre_tokenizer.h"

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/regex_pattern.h"

namespace expertmesh {
namespace {

// The pattern of GPT-2 (Radford et al. 2019).
constexpr char const* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class SplitBehavior : std::uint8_t { isolated, removed, merged_with_previous, merged_with_next, contiguous };

SplitBehavior behavior_of(std::string const& name) {
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  tokenizer_error("pre_tokenizer", "split behavior '" + name + "' is not supported");
}

struct Segment {
  std::size_t begin, end;
  bool match;
};

std::vector<Segment> segments_of(std::vector<std::pair<std::size_t, std::size_t>> const& matches, std::size_t size,
                                 bool invert) {
  std::vector<Segment> segments;
  std::size_t at = 0;
  for (auto const& [begin, end] : matches) {
    if (begin > at) segments.push_back({at, begin, invert});
    segments.push_back({begin, end, !invert});
    at = end;
  }
  if (at < size) segments.push_back({at, size, invert});
  return segments;
}

void split(std::string const& text, std::vector<Segment> const& segments, SplitBehavior behavior,
           std::vector<std::string>& out) {
  std::size_t const first = out.size();
  bool previous_match = false;
  for (auto const& s : segments) {
    std::string piece = text.substr(s.begin, s.end - s.begin);
    bool const any = out.size() > first;
    switch (behavior) {
      case SplitBehavior::isolated:
        out.push_back(std::move(piece));
        break;
      case SplitBehavior::removed:
        if (!s.match) out.push_back(std::move(piece));
        break;
      case SplitBehavior::contiguous:
        if (any && s.match == previous_match)
          out.back() += piece;
        else
          out.push_back(std::move(piece));
        break;
      case SplitBehavior::merged_with_previous:
        if (any && s.match && !previous_match)
          out.back() += piece;
        else
          out.push_back(std::move(piece));
        break;
      case SplitBehavior::merged_with_next:
        if (any && previous_match && !s.match)
          out.back() += piece;
        else
          out.push_back(std::move(piece));
        break;
    }
    previous_match = s.match;
  }
}

std::vector<std::pair<std::size_t, std::size_t>> literal_matches(std::string const& text, std::string const& what) {
  std::vector<std::pair<std::size_t, std::size_t>> found;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size()))
    found.emplace_back(at, at + what.size());
  return found;
}

}  // namespace

PreTokenizer::PreTokenizer(Json const& spec) {
  if (!spec.is_null()) add(spec);
}

void PreTokenizer::add(Json const& spec) {
  std::string const where = "pre_tokenizer";
  auto const type = json_field<std::string>(spec, "type", where);
  auto const add_split = [&](RegexPattern const& regex, SplitBehavior behavior, bool invert) {
    steps_.emplace_back([regex, behavior, invert](std::string const& piece, bool, Pieces& out) {
      split(piece, segments_of(regex.matches(piece), piece.size(), invert), behavior, out);
    });
  };
  if (type == "Sequence") {
    for (auto const& step : json_part(spec, "pretokenizers", where)) add(step);
  } else if (type == "Split") {
    auto const& pattern = json_part(spec, "pattern", where);
    SplitBehavior const behavior = behavior_of(json_field<std::string>(spec, "behavior", where));
    bool const invert = json_field_or(spec, "invert", false, where);
    if (pattern.contains("Regex")) {
      add_split(RegexPattern(json_field<std::string>(pattern, "Regex", where)), behavior, invert);
    } else {
      auto const what = json_field<std::string>(pattern, "String", where);
      if (what.empty()) tokenizer_error(where, "an empty split string");
      steps_.emplace_back([what, behavior, invert](std::string const& piece, bool, Pieces& out) {
        split(piece, segments_of(literal_matches(piece, what), piece.size(), invert), behavior, out);
      });
    }
  } else if (type == "Digits") {
    bool const individual = json_field_or(spec, "individual_digits", false, where);
    add_split(RegexPattern(R"(\p{N})"), individual ? SplitBehavior::isolated : SplitBehavior::contiguous, false);
  } else if (type == "ByteLevel") {
    bool const prefix = json_field_or(spec, "add_prefix_space", true, where);
    if (prefix)
      steps_.emplace_back([](std::string const& piece, bool, Pieces& out) {
        out.push_back(piece.starts_with(' ') ? piece : " " + piece);
      });
    if (json_field_or(spec, "use_regex", true, where))
      add_split(RegexPattern(kGpt2Pattern), SplitBehavior::isolated, false);
    steps_.emplace_back([](std::string const& piece, bool, Pieces& out) { out.push_back(to_byte_alphabet(piece)); });
  } else if (type == "Metaspace") {
    auto const mark = json_field<std::string>(spec, "replacement", where);
    auto const scheme = json_field_or<std::string>(spec, "prepend_scheme", "always", where);
    if (scheme != "always" && scheme != "first" && scheme != "never")
      tokenizer_error(where, "prepend_scheme '" + scheme + "' is not supported");
    if (!json_field_or(spec, "add_prefix_space", scheme != "never", where) && scheme != "never")  // the older spelling
      tokenizer_error(where, "add_prefix_space false contradicts prepend_scheme '" + scheme + "'");
    bool const cut = json_field_or(spec, "split", true, where);
    steps_.emplace_back([mark, scheme, cut](std::string const& piece, bool at_start, Pieces& out) {
      std::string text = replaced(piece, " ", mark);
      if ((scheme == "always" || (scheme == "first" && at_start)) && !text.starts_with(mark)) text = mark + text;
      if (cut)
        split(text, segments_of(literal_matches(text, mark), text.size(), false), SplitBehavior::merged_with_next, out);
      else
        out.push_back(std::move(text));
    });
  } else {
    tokenizer_error(where, "kind '" + type + "' is not supported");
  }
}

std::vector<std::string> PreTokenizer::operator()(std::string text, bool at_start) const {
  Pieces pieces;
  if (!text.empty()) pieces.push_back(std::move(text));
  for (auto const& step : steps_) {
    Pieces refined;
    for (std::size_t i = 0; i < pieces.size(); ++i) step(std::move(pieces[i]), at_start && i == 0, refined);
    pieces = std::move(refined);
  }
  return pieces;
}

}  // namespace expertmesh
