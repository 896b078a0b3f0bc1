#include "coordinator/text/answers/call_reader.h"

#include <algorithm>

namespace expertmesh {
namespace {

constexpr std::size_t kMaxName = 256;

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}
bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
         c == '.' || c == ':' || c == '/';
}

}  // namespace

JsonEnd::State JsonEnd::look(std::string_view value) {
  for (; state_ == State::more && seen_ < value.size(); ++seen_) {
    char const c = value[seen_];
    if (in_string_) {
      if (!escaped_ && c == '"') in_string_ = false;
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      open_.push_back(c == '{' ? '}' : ']');
      if (open_.size() > kMaxDepth) state_ = State::bad;
    } else if (c == '}' || c == ']') {
      if (open_.empty() || open_.back() != c)
        state_ = State::bad;
      else
        open_.pop_back();
    }
    if (state_ == State::more && open_.empty()) {
      state_ = c == '}' || c == ']' ? State::done : State::bad;
    }
  }
  return state_;
}

void CallReader::space() {
  while (good() && position_ < text_.size() && is_space(text_[position_])) ++position_;
}

std::size_t CallReader::one_of(std::vector<std::string_view> const& alternatives) {
  if (!good()) return alternatives.size();
  bool may_come = false;
  for (std::size_t i = 0; i < alternatives.size(); ++i) {
    if (rest().starts_with(alternatives[i])) {
      position_ += alternatives[i].size();
      return i;
    }
    may_come = may_come || alternatives[i].starts_with(rest());
  }
  may_come ? lack() : fail();
  return alternatives.size();
}

void CallReader::literal(std::string_view expected) {
  one_of({expected});
}

bool CallReader::optional(std::string_view literal) {
  if (!good()) return false;
  if (rest().starts_with(literal)) {
    position_ += literal.size();
    return true;
  }
  if (literal.starts_with(rest()) && !at_end_) lack();
  return false;
}

std::string_view CallReader::name() {
  if (!good()) return {};
  auto const end = std::ranges::find_if_not(rest(), is_name);
  auto const found = rest().substr(0, static_cast<std::size_t>(end - rest().begin()));
  if (found.size() > kMaxName || (found.empty() && !rest().empty())) fail();
  if (found.size() == rest().size()) lack();
  if (good()) position_ += found.size();
  return found;
}

std::string_view CallReader::until(std::string_view end) {
  if (!good()) return {};
  std::size_t& searched = memory_.searched[position_];
  std::size_t const place = rest().find(end, searched);
  if (place == std::string_view::npos) {
    searched = rest().size() - std::min(rest().size(), end.size() - 1);  // it may be there in part
    lack();
    return {};
  }
  auto const found = rest().substr(0, place);
  position_ += place + end.size();
  return found;
}

std::string_view CallReader::json() {
  if (!good()) return {};
  JsonEnd& end = memory_.json[position_];
  switch (end.look(rest())) {
    case JsonEnd::State::more:
      lack();
      return {};
    case JsonEnd::State::bad:
      fail();
      return {};
    case JsonEnd::State::done:
      break;
  }
  auto const found = rest().substr(0, end.length());
  position_ += found.size();
  return found;
}

char CallReader::peek() {
  if (!good()) return 0;
  if (position_ < text_.size()) return text_[position_];
  lack();
  return 0;
}

}  // namespace expertmesh
