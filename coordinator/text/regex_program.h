// A pattern compiled for a backtracking matcher. Code points are mapped to few classes (symbols): those that no set of
// the pattern tells apart share one.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/regex_parser.h"

namespace expertmesh {

struct RegexInstruction {
  enum class Op : std::uint8_t {
    set,         // one symbol of `set`
    loop,        // min to max of them, the most first
    possessive,  // the same, never giving one back
    split,       // go on at `next`, or else at `other`
    jump,        // to `next`
    look,        // the program at `other` matches (or does not) here, or ending here; then `next`
    assertion,
    end,  // of the program, or of that of a look
  };
  Op op = Op::end;
  bool negative = false;                // of look
  RegexNode::Assertion assertion = {};  // of assertion
  std::uint32_t next = 0;
  std::uint32_t other = 0;
  std::uint32_t set = 0;
  std::uint32_t min = 0;
  std::optional<std::uint32_t> max;  // none: any number
  std::uint32_t behind = 0;          // characters that a look goes back
  std::uint32_t memo = 0;            // number of the split or loop
  // By symbol at the place where it stands. Split: bit 0 `next`, bit 1 `other` can start there. Loops: bit 0 `next`.
  std::vector<std::uint8_t> can_start;
};

struct RegexProgram {
  explicit RegexProgram(std::string const& pattern);

  [[nodiscard]] std::uint8_t symbol_of(char32_t c) const { return blocks[pages[c >> 8]][c & 0xFF]; }
  [[nodiscard]] bool in_set(std::uint32_t set, std::uint8_t symbol) const {
    return members[set * num_columns + symbol];
  }

  std::vector<RegexInstruction> code;
  std::uint32_t num_memos = 0;
  std::size_t num_columns = 0;          // symbols, and one for the end of the text, which is in no set
  std::vector<std::uint8_t> members;    // [sets, num_columns]
  std::vector<std::uint8_t> can_start;  // [num_columns] of the whole program
  std::uint32_t newline_set = 0;
  std::uint32_t word_set = 0;
  std::vector<std::uint16_t> pages;                   // [code point / 256], into blocks
  std::vector<std::array<std::uint8_t, 256>> blocks;  // symbols

 private:
  class Compiler;
  void number_symbols(std::vector<CodePointSet> const& sets);
};

}  // namespace expertmesh
