#include "coordinator/text/split.h"

#include "coordinator/text/json_fields.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {

SplitBehavior split_behavior(std::string const& name) {
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  tokenizer_error("pre_tokenizer", "split behavior '" + name + "' is not supported");
}

void split(Pieces::Piece const& piece, std::vector<RegexPattern::Match> const& matches, SplitBehavior behavior,
           bool invert, Pieces& out) {
  // The part that may still grow: [begin, end).
  std::size_t begin = 0;
  std::size_t end = 0;
  bool open = false;
  bool previous = false;  // whether the segment before was a match
  auto const close = [&] {
    if (open) out.add(piece.text.substr(begin, end - begin), piece.at_start && begin == 0);
    open = false;
  };
  auto const segment = [&](std::size_t from, std::size_t to, bool match) {
    bool const joins = behavior == SplitBehavior::contiguous             ? match == previous
                       : behavior == SplitBehavior::merged_with_previous ? match && !previous
                       : behavior == SplitBehavior::merged_with_next     ? previous && !match
                                                                         : false;
    if (!open || !joins) {
      close();
      begin = from;
    }
    end = to;
    open = behavior != SplitBehavior::removed || !match;
    previous = match;
  };
  std::size_t at = 0;
  for (auto const& match : matches) {
    if (match.begin > at) segment(at, match.begin, invert);
    segment(match.begin, match.end, !invert);
    at = match.end;
  }
  if (at < piece.text.size()) segment(at, piece.text.size(), invert);
  close();
}

void find_string(std::string_view text, std::string_view what, std::vector<RegexPattern::Match>& out) {
  for (std::size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + what.size()))
    out.push_back({at, at + what.size()});
}

void find_characters(std::string_view text, bool (*is)(char32_t), std::vector<RegexPattern::Match>& out) {
  for (std::size_t at = 0; at < text.size();) {
    std::size_t const length = character_length(text.substr(at));
    if (is(code_point(text.substr(at, length)))) out.push_back({at, at + length});
    at += length;
  }
}

}  // namespace expertmesh
