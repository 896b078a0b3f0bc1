#include "coordinator/text/regex_pattern.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "common/base/check.h"
#include "coordinator/text/regex_program.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

using Op = RegexInstruction::Op;
using Position = std::uint32_t;  // characters from the start of the text

// What one thread needs while it matches, kept from text to text.
struct Scratch {
  // What is left to try, the latest first.
  struct Choice {
    enum class Kind : std::uint8_t {
      other,  // go on at instruction `at` from `position`
      split,  // both ways of the split at `at` have failed at `position`
      loop,   // the loop at `at` went on from `position`; it can give back down to `least`; it could take to `most`
      possessive,  // the loop took from `least` to `most`, and what follows has failed
    };
    Kind kind;
    std::uint32_t at;
    Position position, least, most;
  };
  std::vector<std::uint8_t> symbols;  // one a character, then the end's
  std::vector<Choice> choices;
  std::vector<bool> failed;     // [memos, characters + 1]
  std::vector<bool> succeeded;  // the same, within looks
};

// Backtracking with a memory. Whether a split or a loop can still lead to a match depends on the place alone, since
// there are neither back references nor captures: what has failed once, also for a match from an earlier start, fails
// again. So every state is walked through once, and all searches in a text together take time linear in it. The memory
// is used only once a text has turned out to need it.
class Matcher {
 public:
  Matcher(RegexProgram const& program, Scratch& scratch)
      : program_(program),
        scratch_(scratch),
        symbols_(scratch.symbols.data()),
        size_(static_cast<Position>(scratch.symbols.size() - 1)),
        budget_(std::uint64_t{16} * size_ + 1000) {}

  // The end of the match that starts there.
  std::optional<Position> match(Position start) {
    scratch_.choices.clear();
    return run(0, start, false);
  }

 private:
  using Choice = Scratch::Choice;

  [[nodiscard]] std::size_t bit(RegexInstruction const& in, Position at) const {
    return static_cast<std::size_t>(in.memo) * (size_ + 1) + at;
  }

  void spend(std::uint64_t steps) {
    if (steps <= budget_) {
      budget_ -= steps;
      return;
    }
    if (memory_) return;
    memory_ = true;
    scratch_.failed.assign(static_cast<std::size_t>(program_.num_memos) * (size_ + 1), false);
    scratch_.succeeded.assign(scratch_.failed.size(), false);
  }

  [[nodiscard]] bool holds(RegexNode::Assertion assertion, Position at) const {
    auto const is = [&](std::uint32_t set, Position p) { return program_.in_set(set, symbols_[p]); };
    auto const newline_at = [&](Position p) { return is(program_.newline_set, p); };
    auto const boundary = [&] { return (at > 0 && is(program_.word_set, at - 1)) != is(program_.word_set, at); };
    switch (assertion) {
      case RegexNode::Assertion::line_start:
        return at == 0 || (newline_at(at - 1) && at < size_);
      case RegexNode::Assertion::line_end:
        return at == size_ || newline_at(at);
      case RegexNode::Assertion::text_start:
        return at == 0;
      case RegexNode::Assertion::text_end:
        return at == size_;
      case RegexNode::Assertion::last_line_end:
        return at == size_ || (at + 1 == size_ && newline_at(at));
      case RegexNode::Assertion::boundary:
        return boundary();
      case RegexNode::Assertion::no_boundary:
        return !boundary();
    }
    return false;
  }

  // Within a look only whether there is a match counts, so that what has succeeded once need not be walked again.
  std::optional<Position> run(std::uint32_t at, Position position, bool in_look) {
    std::size_t const base = scratch_.choices.size();
    while (true) {
      spend(1);
      auto const& in = program_.code[at];
      bool fits = true;
      switch (in.op) {
        case Op::set:
          fits = program_.in_set(in.set, symbols_[position]);
          ++position;
          at = in.next;
          break;
        case Op::loop:
        case Op::possessive:
          fits = enter_loop(at, position, in_look);
          if (succeeded_) return succeed(base, position, in_look);
          break;
        case Op::split: {
          std::uint8_t const ways = in.can_start[symbols_[position]];
          if (memory_) {
            if (in_look && scratch_.succeeded[bit(in, position)]) return succeed(base, position, in_look);
            if (scratch_.failed[bit(in, position)]) {
              fits = false;
              break;
            }
            scratch_.choices.push_back({Choice::Kind::split, at, position, 0, 0});
          }
          if (ways == 0) {
            fits = false;
          } else if (ways == 3) {
            scratch_.choices.push_back({Choice::Kind::other, in.other, position, 0, 0});
            at = in.next;
          } else {
            at = ways == 1 ? in.next : in.other;
          }
          break;
        }
        case Op::jump:
          at = in.next;
          break;
        case Op::look:
          fits = (position >= in.behind && run(in.other, position - in.behind, true).has_value()) != in.negative;
          at = in.next;
          break;
        case Op::assertion:
          fits = holds(in.assertion, position);
          at = in.next;
          break;
        case Op::end:
          return succeed(base, position, in_look);
      }
      if (!fits && !next_choice(base, at, position)) return std::nullopt;
    }
  }

  // Takes what the loop takes and goes on behind it.
  bool enter_loop(std::uint32_t& at, Position& position, bool in_look) {
    auto const& in = program_.code[at];
    // Of an endless loop it is remembered whether it can succeed when it has come to a place, of one with a limit
    // whether it can when it starts there.
    bool const remembered = memory_ && !in.max;
    if (memory_ && in.max) {
      succeeded_ = in_look && scratch_.succeeded[bit(in, position)];
      if (succeeded_) return true;
      if (scratch_.failed[bit(in, position)]) return false;
      scratch_.choices.push_back({Choice::Kind::split, at, position, 0, 0});
    }
    Position const limit =
        in.max ? static_cast<Position>(std::min<std::uint64_t>(size_, std::uint64_t{position} + *in.max)) : size_;
    Position const least = position + in.min;
    std::uint8_t const* member = &program_.members[in.set * program_.num_columns];
    Position most = position;
    while (most < limit && member[symbols_[most]]) {
      if (remembered && most >= least) {
        if (in_look && scratch_.succeeded[bit(in, most)]) {
          succeeded_ = true;
          return true;
        }
        if (scratch_.failed[bit(in, most)]) break;
      }
      ++most;
    }
    spend(most - position);
    if (most < least || most < position) return false;
    // A place where the loop is known to fail is none to leave it at.
    if (remembered && most >= least && scratch_.failed[bit(in, most)]) {
      if (in.op == Op::possessive) return false;
      if (most == least) return false;
      --most;
    }
    if (in.op == Op::possessive) {
      if (remembered) scratch_.choices.push_back({Choice::Kind::possessive, at, most, least, most});
      position = most;
      at = in.next;
      return true;
    }
    return leave_loop(at, position, {Choice::Kind::loop, at, most, least, most});
  }

  // Goes on behind the loop at the last place, up to choice.position, where that can succeed.
  bool leave_loop(std::uint32_t& at, Position& position, Choice choice) {
    auto const& in = program_.code[choice.at];
    Position exit = choice.position;
    while (exit > choice.least && !in.can_start[symbols_[exit]]) --exit;
    spend(choice.position - exit);
    if (!in.can_start[symbols_[exit]]) {
      remember_failure(choice);
      return false;
    }
    if (exit > choice.least || memory_) {
      choice.position = exit;
      scratch_.choices.push_back(choice);
    }
    position = exit;
    at = in.next;
    return true;
  }

  void remember_failure(Choice const& loop) {
    auto const& in = program_.code[loop.at];
    if (!memory_ || in.max) return;
    for (Position p = loop.least; p <= loop.most; ++p) scratch_.failed[bit(in, p)] = true;
  }

  bool next_choice(std::size_t base, std::uint32_t& at, Position& position) {
    auto& choices = scratch_.choices;
    while (choices.size() > base) {
      Choice choice = choices.back();
      choices.pop_back();
      switch (choice.kind) {
        case Choice::Kind::other:
          at = choice.at;
          position = choice.position;
          return true;
        case Choice::Kind::split:
          if (memory_) scratch_.failed[bit(program_.code[choice.at], choice.position)] = true;
          break;
        case Choice::Kind::possessive:
          remember_failure(choice);
          break;
        case Choice::Kind::loop:
          if (choice.position == choice.least) {
            remember_failure(choice);
            break;
          }
          --choice.position;
          if (leave_loop(at, position, choice)) return true;
          break;
      }
    }
    return false;
  }

  // What is left to try tells the way that led here.
  std::optional<Position> succeed(std::size_t base, Position position, bool in_look) {
    succeeded_ = false;
    if (in_look && memory_)
      for (std::size_t c = base; c < scratch_.choices.size(); ++c) {
        Choice const& choice = scratch_.choices[c];
        auto const& in = program_.code[choice.at];
        if (choice.kind == Choice::Kind::split)
          scratch_.succeeded[bit(in, choice.position)] = true;
        else if (choice.kind != Choice::Kind::other && !in.max)
          for (Position p = choice.least; p <= choice.position; ++p) scratch_.succeeded[bit(in, p)] = true;
      }
    scratch_.choices.resize(base);
    return position;
  }

  RegexProgram const& program_;
  Scratch& scratch_;
  std::uint8_t const* symbols_;
  Position size_;
  std::uint64_t budget_;  // steps until the memory is needed
  bool memory_ = false;
  bool succeeded_ = false;  // a loop within a look came to where it has succeeded before
};

void read_symbols(RegexProgram const& program, std::string_view text, std::vector<std::uint8_t>& out) {
  out.resize(text.size() + 1);
  auto const* byte = reinterpret_cast<unsigned char const*>(text.data());
  auto const* const end = byte + text.size();
  std::uint8_t* to = out.data();
  auto const& ascii = program.blocks[program.pages[0]];
  while (byte < end) {
    if (*byte < 0x80) {
      *to++ = ascii[*byte++];
      continue;
    }
    char32_t c = 0;
    if (*byte < 0xE0) {
      c = (byte[0] & 0x1FU) << 6 | (byte[1] & 0x3FU);
      byte += 2;
    } else if (*byte < 0xF0) {
      c = (byte[0] & 0xFU) << 12 | (byte[1] & 0x3FU) << 6 | (byte[2] & 0x3FU);
      byte += 3;
    } else {
      c = (byte[0] & 0x7U) << 18 | (byte[1] & 0x3FU) << 12 | (byte[2] & 0x3FU) << 6 | (byte[3] & 0x3FU);
      byte += 4;
    }
    *to++ = program.symbol_of(c);
  }
  *to++ = static_cast<std::uint8_t>(program.num_columns - 1);
  out.resize(static_cast<std::size_t>(to - out.data()));
}

}  // namespace

RegexPattern::RegexPattern(std::string const& pattern) : program_(std::make_shared<RegexProgram const>(pattern)) {}

void RegexPattern::matches(std::string_view text, std::vector<Match>& out) const {
  EM_CHECK(text.size() < std::numeric_limits<Position>::max(), text.size());
  static thread_local Scratch scratch;
  read_symbols(*program_, text, scratch.symbols);
  auto const size = static_cast<Position>(scratch.symbols.size() - 1);
  Matcher matcher(*program_, scratch);
  // Matches come in order: their places in bytes are found by going along.
  Position character = 0;
  std::size_t byte = 0;
  bool const one_byte_each = size == text.size();
  auto const byte_of = [&](Position p) {
    if (one_byte_each) return static_cast<std::size_t>(p);
    for (; character < p; ++character) byte += character_length(text.substr(byte));
    return byte;
  };
  std::optional<Position> last_end;
  for (Position at = 0; at <= size;) {
    if (!program_->can_start[scratch.symbols[at]]) {
      ++at;
      continue;
    }
    auto const end = matcher.match(at);
    if (!end || (*end == at && last_end == at)) {
      ++at;
      continue;
    }
    std::size_t const begin = byte_of(at);
    out.push_back({begin, byte_of(*end)});
    last_end = at = *end;
  }
}

}  // namespace expertmesh
