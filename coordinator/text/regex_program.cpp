#include "coordinator/text/regex_program.h"

#include <algorithm>
#include <map>

#include "common/base/error.h"

namespace expertmesh {

using Op = RegexInstruction::Op;
using Kind = RegexNode::Kind;

class RegexProgram::Compiler {
 public:
  Compiler(std::string const& pattern, RegexProgram& program) : pattern_(pattern), program_(program) {
    program_.newline_set = set_index(CodePointSet({{'\n', '\n'}}));
    program_.word_set = set_index(expertmesh::word_set());
    add(parse_regex(pattern));
    emit(Op::end);
  }
  [[nodiscard]] std::vector<CodePointSet> const& sets() const { return sets_; }

  // What can start at an instruction, by symbol; needs the symbols.
  void find_starts() {
    for (std::size_t i = 0; i < program_.code.size(); ++i) {
      auto& in = program_.code[i];
      if (in.op == Op::split) {
        auto const first = starts(in.next);
        auto const second = starts(in.other);
        in.can_start.resize(program_.num_columns);
        for (std::size_t s = 0; s < first.size(); ++s)
          in.can_start[s] = static_cast<std::uint8_t>(first[s] | second[s] << 1);
      } else if (in.op == Op::loop) {
        in.can_start = starts(in.next);
      }
    }
    program_.can_start = starts(0);
  }

 private:
  static constexpr std::size_t kMaxInstructions = 4000;

  [[noreturn]] void fail(std::string const& what) const {
    throw ModelError("tokenizer.json: pattern '" + pattern_ + "': " + what);
  }

  std::uint32_t here() const { return static_cast<std::uint32_t>(program_.code.size()); }

  std::uint32_t emit(RegexInstruction instruction) {
    if (program_.code.size() >= kMaxInstructions) fail("too large");
    std::uint32_t const at = here();
    if (instruction.next == 0) instruction.next = at + 1;
    if (instruction.op == Op::split || instruction.op == Op::loop || instruction.op == Op::possessive)
      instruction.memo = program_.num_memos++;
    program_.code.push_back(std::move(instruction));
    return at;
  }
  std::uint32_t emit(Op op) {
    RegexInstruction instruction;
    instruction.op = op;
    return emit(std::move(instruction));
  }

  std::uint32_t set_index(CodePointSet const& set) {
    auto const index = static_cast<std::uint32_t>(std::ranges::find(sets_, set) - sets_.begin());
    if (index == sets_.size()) sets_.push_back(set);
    return index;
  }

  void add(RegexNode const& node) {
    switch (node.kind) {
      case Kind::set: {
        RegexInstruction in;
        in.op = Op::set;
        in.set = set_index(node.set);
        emit(std::move(in));
        break;
      }
      case Kind::sequence:
        for (auto const& child : node.children) add(child);
        break;
      case Kind::alternatives:
        add_alternatives(node.children.size(), [&](std::size_t i) { add(node.children[i]); });
        break;
      case Kind::repeat:
        add_repeat(node);
        break;
      case Kind::look:
        add_look(node);
        break;
      case Kind::assertion: {
        RegexInstruction in;
        in.op = Op::assertion;
        in.assertion = node.assertion;
        emit(std::move(in));
        break;
      }
    }
  }

  template <class AddOne>
  void add_alternatives(std::size_t count, AddOne const& add_one) {
    std::vector<std::uint32_t> jumps;
    for (std::size_t i = 0; i < count; ++i) {
      if (i + 1 == count) {
        add_one(i);
        break;
      }
      std::uint32_t const split = emit(Op::split);
      add_one(i);
      jumps.push_back(emit(Op::jump));
      program_.code[split].other = here();
    }
    for (std::uint32_t jump : jumps) program_.code[jump].next = here();
  }

  void add_repeat(RegexNode const& node) {
    RegexNode const& body = node.children.front();
    if (body.kind == Kind::set && node.mode != RegexNode::Mode::lazy) {
      RegexInstruction in;
      in.op = node.mode == RegexNode::Mode::greedy ? Op::loop : Op::possessive;
      in.set = set_index(body.set);
      in.min = static_cast<std::uint32_t>(node.min);
      if (node.max) in.max = static_cast<std::uint32_t>(*node.max);
      emit(std::move(in));
      return;
    }
    auto const order = [&](std::uint32_t split, std::uint32_t inside, std::uint32_t outside) {
      auto& in = program_.code[split];
      in.next = node.mode == RegexNode::Mode::lazy ? outside : inside;
      in.other = node.mode == RegexNode::Mode::lazy ? inside : outside;
    };
    for (std::size_t i = 0; i < node.min; ++i) add(body);
    if (!node.max) {
      if (can_be_empty(body)) fail("an endless repetition of what can be empty is not supported");
      std::uint32_t const split = emit(Op::split);
      add(body);
      RegexInstruction back;
      back.op = Op::jump;
      program_.code[emit(std::move(back))].next = split;
      order(split, split + 1, here());
      return;
    }
    std::vector<std::uint32_t> splits;
    for (std::size_t i = node.min; i < *node.max; ++i) {
      splits.push_back(emit(Op::split));
      add(body);
    }
    for (std::uint32_t split : splits) order(split, split + 1, here());
  }

  // The program of a look stands behind a jump over it.
  void add_look(RegexNode const& node) {
    RegexNode const& body = node.children.front();
    std::vector<RegexNode const*> parts{&body};
    if (node.behind && body.kind == Kind::alternatives) {  // each alternative has a length of its own
      parts.clear();
      for (auto const& alternative : body.children) parts.push_back(&alternative);
    }
    auto const add_one = [&](std::size_t i) {
      RegexInstruction in;
      in.op = Op::look;
      in.negative = node.negative;
      if (node.behind) {
        auto const length = length_of(*parts[i]);
        if (!length) fail("a look-behind of no fixed length is not supported");
        in.behind = static_cast<std::uint32_t>(*length);
      }
      std::uint32_t const look = emit(std::move(in));
      program_.code[look].other = here();
      add(*parts[i]);
      emit(Op::end);
      program_.code[look].next = here();
    };
    if (node.negative)
      for (std::size_t i = 0; i < parts.size(); ++i) add_one(i);
    else
      add_alternatives(parts.size(), add_one);
  }

  static bool can_be_empty(RegexNode const& node) {
    switch (node.kind) {
      case Kind::set:
        return false;
      case Kind::sequence:
        return std::ranges::all_of(node.children, can_be_empty);
      case Kind::alternatives:
        return std::ranges::any_of(node.children, can_be_empty);
      case Kind::repeat:
        return node.min == 0 || can_be_empty(node.children.front());
      default:
        return true;
    }
  }

  // In characters, where all matches have one.
  static std::optional<std::size_t> length_of(RegexNode const& node) {
    std::size_t total = 0;
    switch (node.kind) {
      case Kind::set:
        return 1;
      case Kind::sequence:
        for (auto const& child : node.children) {
          auto const length = length_of(child);
          if (!length) return std::nullopt;
          total += *length;
        }
        return total;
      case Kind::alternatives: {
        auto const length = length_of(node.children.front());
        for (auto const& child : node.children)
          if (length_of(child) != length) return std::nullopt;
        return length;
      }
      case Kind::repeat: {
        auto const length = length_of(node.children.front());
        if (!length || node.max != node.min) return std::nullopt;
        return *length * node.min;
      }
      default:
        return 0;
    }
  }

  // [num_columns]: whether a match from this instruction on can start with the symbol, as far as sets tell.
  std::vector<std::uint8_t> starts(std::uint32_t from) const {
    std::vector<std::uint8_t> out(program_.num_columns);
    std::vector<bool> seen(program_.code.size());
    std::vector<std::uint32_t> open{from};
    while (!open.empty()) {
      std::uint32_t const at = open.back();
      open.pop_back();
      if (seen[at]) continue;
      seen[at] = true;
      auto const& in = program_.code[at];
      bool const takes = in.op == Op::set || in.op == Op::loop || in.op == Op::possessive;
      if (takes)
        for (std::size_t s = 0; s < out.size(); ++s) out[s] |= program_.members[in.set * program_.num_columns + s];
      if (in.op == Op::end) std::ranges::fill(out, 1);
      if (in.op == Op::split) open.push_back(in.other);
      if (in.op != Op::end && in.op != Op::set && (!takes || in.min == 0)) open.push_back(in.next);
    }
    return out;
  }

  std::string const& pattern_;
  RegexProgram& program_;
  std::vector<CodePointSet> sets_;
};

void RegexProgram::number_symbols(std::vector<CodePointSet> const& sets) {
  std::vector<char32_t> bounds{0};  // where some set begins or ends
  for (auto const& set : sets)
    for (auto const& range : set.ranges()) {
      bounds.push_back(range.first);
      bounds.push_back(range.last + 1);
    }
  std::ranges::sort(bounds);
  bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
  std::map<std::vector<bool>, std::size_t> symbols;  // by the sets that they are in
  std::vector<std::uint8_t> symbol(kLastCodePoint + 1);
  for (std::size_t b = 0; b < bounds.size() && bounds[b] <= kLastCodePoint; ++b) {
    std::vector<bool> in(sets.size());
    for (std::size_t s = 0; s < sets.size(); ++s) in[s] = sets[s].contains(bounds[b]);
    std::size_t const number = symbols.try_emplace(std::move(in), symbols.size()).first->second;
    if (number > 0xFE) throw ModelError("tokenizer.json: a pattern tells more than 255 kinds of characters apart");
    char32_t const end = b + 1 < bounds.size() ? bounds[b + 1] : kLastCodePoint + 1;
    std::fill(symbol.begin() + bounds[b], symbol.begin() + end, static_cast<std::uint8_t>(number));
  }
  num_columns = symbols.size() + 1;
  members.assign(sets.size() * num_columns, 0);
  for (auto const& [in, number] : symbols)
    for (std::size_t s = 0; s < sets.size(); ++s) members[s * num_columns + number] = in[s];
  std::map<std::array<std::uint8_t, 256>, std::uint16_t> known;
  for (std::size_t page = 0; page <= kLastCodePoint >> 8; ++page) {
    std::array<std::uint8_t, 256> block{};
    std::copy_n(symbol.begin() + static_cast<std::ptrdiff_t>(page << 8), 256, block.begin());
    auto const [place, is_new] = known.try_emplace(block, static_cast<std::uint16_t>(blocks.size()));
    if (is_new) blocks.push_back(block);
    pages.push_back(place->second);
  }
}

RegexProgram::RegexProgram(std::string const& pattern) {
  Compiler compiler(pattern, *this);
  number_symbols(compiler.sets());
  compiler.find_starts();
}

}  // namespace expertmesh
