#include "coordinator/text/regex_parser.h"

#include "common/base/error.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

using Kind = RegexNode::Kind;
using Mode = RegexNode::Mode;
using Assertion = RegexNode::Assertion;

constexpr int kMaxDepth = 100;              // nested groups and classes
constexpr std::size_t kMaxRepeat = 100000;  // Oniguruma's own limit

class Parser {
 public:
  explicit Parser(std::string const& pattern) : pattern_(pattern) {
    if (repaired_utf8(pattern) != pattern) fail("not UTF-8");
  }

  RegexNode parse() {
    RegexNode node = alternatives({});
    if (!at_end()) fail("an unmatched ')'");
    return node;
  }

 private:
  struct Flags {
    bool any_case = false;        // (?i)
    bool dot_is_newline = false;  // (?m)
  };

  [[noreturn]] void fail(std::string const& what) const {
    throw ModelError("tokenizer.json: pattern '" + pattern_ + "': " + what);
  }
  [[nodiscard]] bool at_end() const { return at_ == pattern_.size(); }
  [[nodiscard]] bool next_is(std::string_view text) const {
    return std::string_view(pattern_).substr(at_).starts_with(text);
  }
  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }
  char32_t take_character() {
    if (at_end()) fail("ends too early");
    std::string_view const rest = std::string_view(pattern_).substr(at_);
    std::size_t const length = character_length(rest);
    at_ += length;
    return code_point(rest.substr(0, length));
  }
  std::string take_until(char end) {
    std::size_t const close = pattern_.find(end, at_);
    if (close == std::string::npos) fail(std::string("no '") + end + "'");
    std::string text = pattern_.substr(at_, close - at_);
    at_ = close + 1;
    return text;
  }

  static RegexNode set_node(CodePointSet set, Flags flags) {
    RegexNode node;
    node.kind = Kind::set;
    node.set = flags.any_case ? set.case_folded() : std::move(set);
    return node;
  }
  static RegexNode assertion_node(Assertion assertion) {
    RegexNode node;
    node.kind = Kind::assertion;
    node.assertion = assertion;
    return node;
  }

  RegexNode alternatives(Flags flags) {
    if (++depth_ > kMaxDepth) fail("nested too deeply");
    RegexNode node;
    node.kind = Kind::alternatives;
    do node.children.push_back(sequence(flags));
    while (take("|"));
    --depth_;
    return node.children.size() == 1 ? std::move(node.children.front()) : node;
  }

  RegexNode sequence(Flags flags) {
    RegexNode node;
    while (!at_end() && !next_is("|") && !next_is(")")) node.children.push_back(quantified(flags));
    return node;
  }

  RegexNode quantified(Flags flags) {
    RegexNode node = atom(flags);
    while (true) {
      RegexNode repeat;
      repeat.kind = Kind::repeat;
      bool interval = false;
      if (take("*")) {
      } else if (take("+")) {
        repeat.min = 1;
      } else if (take("?")) {
        repeat.max = 1;
      } else if (next_is("{") && take_interval(repeat)) {
        interval = true;
      } else {
        return node;
      }
      if (node.kind == Kind::assertion || node.kind == Kind::look) fail("repeats what matches no character");
      // Behind an interval '+' is a repetition of its own in this syntax, and so is '?' behind {n}.
      bool const exact = interval && repeat.max == repeat.min;
      if (!exact && take("?"))
        repeat.mode = Mode::lazy;
      else if (!interval && take("+"))
        repeat.mode = Mode::possessive;
      if (repeat.mode == Mode::possessive && node.kind != Kind::set)
        fail("a possessive repetition of more than one character is not supported");
      repeat.children.push_back(std::move(node));
      node = std::move(repeat);
    }
  }

  // {n}, {n,}, {,m} or {n,m}; anything else is literal text.
  bool take_interval(RegexNode& repeat) {
    std::size_t const start = at_;
    ++at_;
    auto const number = [&]() -> std::optional<std::size_t> {
      std::optional<std::size_t> value;
      while (!at_end() && pattern_[at_] >= '0' && pattern_[at_] <= '9') {
        value = value.value_or(0) * 10 + static_cast<std::size_t>(pattern_[at_++] - '0');
        if (*value > kMaxRepeat) fail("a repetition beyond " + std::to_string(kMaxRepeat));
      }
      return value;
    };
    auto const least = number();
    bool const comma = take(",");
    auto const most = comma ? number() : least;
    if (!take("}") || (!least && !most)) {
      at_ = start;
      return false;
    }
    repeat.min = least.value_or(0);
    repeat.max = most;
    if (most && *most < repeat.min) fail("an interval that ends before it starts");
    return true;
  }

  RegexNode atom(Flags flags) {
    if (take("(")) return group(flags);
    if (take("[")) return set_node(char_class(flags), {});
    if (take("^")) return assertion_node(Assertion::line_start);
    if (take("$")) return assertion_node(Assertion::line_end);
    if (take(".")) {
      CodePointSet const newline({{'\n', '\n'}});
      return set_node(flags.dot_is_newline ? CodePointSet().complement() : newline.complement(), {});
    }
    for (char const* quantifier : {"*", "+", "?"})
      if (next_is(quantifier)) fail("nothing to repeat");
    if (take("\\")) {
      if (take("A")) return assertion_node(Assertion::text_start);
      if (take("z")) return assertion_node(Assertion::text_end);
      if (take("Z")) return assertion_node(Assertion::last_line_end);
      if (take("b")) return assertion_node(Assertion::boundary);
      if (take("B")) return assertion_node(Assertion::no_boundary);
      if (auto set = escaped_class()) return set_node(std::move(*set), {});  // (?i) folds them within [] only
      char32_t const c = escaped_character();
      return set_node(CodePointSet({{c, c}}), flags);
    }
    char32_t const c = take_character();
    return set_node(CodePointSet({{c, c}}), flags);
  }

  RegexNode group(Flags flags) {
    RegexNode node;
    if (take("?:")) {
      node = alternatives(flags);
    } else if (next_is("?=") || next_is("?!") || next_is("?<=") || next_is("?<!")) {
      node.kind = Kind::look;
      take("?");
      node.behind = take("<");
      node.negative = take("!");
      if (!node.negative) take("=");
      node.children.push_back(alternatives(flags));
    } else if (take("?#")) {
      take_until(')');
      return node;
    } else if (next_is("?>") || next_is("?~") || next_is("?(")) {
      fail("'(" + pattern_.substr(at_, 2) + "' is not supported");
    } else if (take("?<") || take("?'")) {
      take_until(pattern_[at_ - 1] == '<' ? '>' : '\'');
      node = alternatives(flags);
    } else if (take("?")) {
      bool on = true;
      while (!next_is(":") && !next_is(")")) {
        char32_t const flag = take_character();
        if (flag == '-')
          on = false;
        else if (flag == 'i')
          flags.any_case = on;
        else if (flag == 'm')
          flags.dot_is_newline = on;
        else
          fail("flag '" + encode_utf8(flag) + "' is not supported");
      }
      // "a(?i)b|c" is "a(?i:b|c)": the flags hold, as a group, to the end of the one around.
      if (take(")")) return alternatives(flags);
      take(":");
      node = alternatives(flags);
    } else {
      node = alternatives(flags);
    }
    if (!take(")")) fail("no ')'");
    return node;
  }

  // What stands behind '[', to its ']'.
  CodePointSet char_class(Flags flags) {
    if (++depth_ > kMaxDepth) fail("nested too deeply");
    bool const negative = take("^");
    CodePointSet result;
    bool has_result = false;  // of the operands of && so far
    CodePointSet operand;
    bool first = true;
    while (first || !next_is("]")) {
      if (at_end()) fail("no ']'");
      if (take("&&")) {
        result = has_result ? result.intersected(operand) : operand;
        has_result = true;
        operand = {};
      } else if (next_is("[:")) {
        operand = operand.united(posix_class());
      } else if (take("[")) {
        operand = operand.united(char_class(flags));
      } else if (next_is("\\")) {
        std::size_t const start = at_++;
        if (auto set = escaped_class()) {
          operand = operand.united(*set);
        } else {
          at_ = start;
          operand = operand.united(range());
        }
      } else {
        operand = operand.united(range());
      }
      first = false;
    }
    take("]");
    if (flags.any_case) operand = operand.case_folded();
    if (has_result) operand = result.intersected(operand);
    --depth_;
    return negative ? operand.complement() : operand;
  }

  // One character of a class, or a range from it.
  CodePointSet range() {
    char32_t const from = class_character();
    std::size_t const dash = at_;
    if (!take("-")) return CodePointSet({{from, from}});
    if (next_is("]") || next_is("[") || next_is("&&")) {
      at_ = dash;
      return CodePointSet({{from, from}});
    }
    std::size_t const end = at_;
    if (take("\\") && escaped_class()) fail("a range that ends in a class");
    at_ = end;
    char32_t const to = class_character();
    if (to < from) fail("an empty range");
    return CodePointSet({{from, to}});
  }

  char32_t class_character() {
    if (!take("\\")) return take_character();
    if (take("b")) return '\b';
    return escaped_character();
  }

  CodePointSet posix_class() {
    std::size_t const start = at_;
    take("[:");
    bool const negative = take("^");
    std::string const name = take_until(']');
    // Unlike \p{Punct}, this one has symbols too.
    auto const set = name == "punct:"      ? property_set("p")->united(*property_set("s"))
                     : name.ends_with(':') ? property_set(name.substr(0, name.size() - 1))
                                           : std::nullopt;
    if (!set) fail("'" + pattern_.substr(start, at_ - start) + "' is not supported");
    return negative ? set->complement() : *set;
  }

  // \s, \p{…} and the like, behind the backslash; none for a single character.
  std::optional<CodePointSet> escaped_class() {
    if (at_end()) fail("ends too early");
    char const c = pattern_[at_];
    CodePointSet const* set = c == 's' || c == 'S'   ? &space_set()
                              : c == 'd' || c == 'D' ? &digit_set()
                              : c == 'w' || c == 'W' ? &word_set()
                              : c == 'h' || c == 'H' ? &hex_digit_set()
                                                     : nullptr;
    if (set) {
      ++at_;
      return c < 'a' ? set->complement() : *set;
    }
    if ((c != 'p' && c != 'P') || pattern_.substr(at_ + 1, 1) != "{") return std::nullopt;
    at_ += 2;
    bool const negative = take("^") != (c == 'P');
    std::string const name = take_until('}');
    auto const property = property_set(name);
    if (!property) fail("\\p{" + name + "} is not supported");
    return negative ? property->complement() : *property;
  }

  char32_t hexadecimal(std::size_t most) {
    char32_t value = 0;
    std::size_t digits = 0;
    for (; digits < most && !at_end() && hex_digit_set().contains(static_cast<unsigned char>(pattern_[at_]));
         ++digits) {
      char const c = pattern_[at_++];
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (digits == 0 || value > kLastCodePoint) fail("a wrong hexadecimal escape");
    return value;
  }

  // What stands behind a backslash that is no class.
  char32_t escaped_character() {
    char32_t const c = take_character();
    switch (c) {
      case 'n':
        return '\n';
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case 'u': {
        std::size_t const start = at_;
        char32_t const value = hexadecimal(4);
        if (at_ - start != 4) fail("\\u wants four digits");
        return value;
      }
      case 'x': {
        if (take("{")) {
          char32_t const value = hexadecimal(8);
          if (!take("}")) fail("no '}'");
          return value;
        }
        char32_t const value = hexadecimal(2);
        if (value > 0x7F) fail("\\x above 7F without braces is not supported");
        return value;
      }
      default:
        if (c < 0x80 && std::isalnum(static_cast<int>(c))) fail("'\\" + encode_utf8(c) + "' is not supported");
        return c;
    }
  }

  std::string const& pattern_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

RegexNode parse_regex(std::string const& pattern) {
  return Parser(pattern).parse();
}

}  // namespace expertmesh
