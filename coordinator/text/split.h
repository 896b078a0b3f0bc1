// How a text falls apart where something matches in it: the Split of tokenizer.json and its relatives.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/regex_pattern.h"

namespace expertmesh {

enum class SplitBehavior : std::uint8_t { isolated, removed, merged_with_previous, merged_with_next, contiguous };

// "MergedWithPrevious" and so on; ModelError for another name.
SplitBehavior split_behavior(std::string const& name);

// The matches are in order and do not overlap. invert: what is between them counts as the matches.
void split(Pieces::Piece const& piece, std::vector<RegexPattern::Match> const& matches, SplitBehavior behavior,
           bool invert, Pieces& out);

// Every place where the string stands, from left to right, and every character of a kind.
void find_string(std::string_view text, std::string_view what, std::vector<RegexPattern::Match>& out);
void find_characters(std::string_view text, bool (*is)(char32_t), std::vector<RegexPattern::Match>& out);

}  // namespace expertmesh
