// Reads what comes next of a text that may not be all there yet.
#pragma once
#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

namespace expertmesh {

// The end of a JSON object or array that comes in pieces: looks at every byte once, whether it is well-formed inside is
// for a parser to say.
class JsonEnd {
 public:
  enum class State : std::uint8_t { more, done, bad };
  // value: from its first bracket; later calls must give the same and more.
  State look(std::string_view value);
  [[nodiscard]] std::size_t length() const { return seen_; }  // of the value, once done

 private:
  static constexpr std::size_t kMaxDepth = 64;
  std::vector<char> open_;  // closing brackets to come
  std::size_t seen_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  State state_ = State::more;
};

// Each step passes what it names, or fails for good: for lack of text (more), or because the text is another (bad).
// Steps after a failure do nothing.
class CallReader {
 public:
  // What earlier looks at shorter forms of the text have seen, by where it begins, so that no byte is searched twice.
  struct Memory {
    std::map<std::size_t, JsonEnd> json;
    std::map<std::size_t, std::size_t> searched;  // how far until() has looked
  };

  // at_end: no more text will come, so that lacking some is bad.
  CallReader(std::string_view text, bool at_end, Memory& memory) : text_(text), at_end_(at_end), memory_(memory) {}

  [[nodiscard]] bool good() const { return state_ == State::good; }
  [[nodiscard]] bool lacks_text() const { return state_ == State::more; }
  [[nodiscard]] std::size_t position() const { return position_; }
  void fail() { state_ = good() ? State::bad : state_; }

  void space();
  void literal(std::string_view expected);
  // The first of the alternatives that comes next; none of them begins another. Their number after a failure.
  std::size_t one_of(std::vector<std::string_view> const& alternatives);
  // Passes the literal if it comes next.
  bool optional(std::string_view literal);
  std::string_view name();                       // of a function: letters, digits, - _ . : /
  std::string_view until(std::string_view end);  // the text before it; passes both
  std::string_view json();                       // an object or array
  // The next byte, 0 after a failure or at the end of all text.
  char peek();
  void skip() { position_ += good() ? 1 : 0; }

 private:
  enum class State : std::uint8_t { good, more, bad };
  [[nodiscard]] std::string_view rest() const { return text_.substr(position_); }
  void lack() { state_ = at_end_ ? State::bad : State::more; }

  std::string_view text_;
  bool at_end_;
  Memory& memory_;
  std::size_t position_ = 0;
  State state_ = State::good;
};

}  // namespace expertmesh
