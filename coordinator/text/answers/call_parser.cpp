#include "coordinator/text/answers/call_parser.h"

#include "coordinator/text/answers/marks.h"

namespace expertmesh {

std::vector<AnswerPiece> CallParser::push(std::string_view text) {
  std::vector<AnswerPiece> out;
  held_ += text;
  while (!held_.empty() && step(false, out)) {
  }
  return out;
}

std::vector<AnswerPiece> CallParser::finish() {
  std::vector<AnswerPiece> out;
  while (!held_.empty()) step(true, out);
  return out;
}

void CallParser::say(std::size_t size, std::vector<AnswerPiece>& out) {
  if (size == 0) return;
  out.emplace_back(ContentPiece{held_.substr(0, size)});
  held_.erase(0, size);
  memory_ = {};
  place_ = CallPlace::middle;
}

bool CallParser::step(bool at_end, std::vector<AnswerPiece>& out) {
  auto const marks = format_->marks(place_);
  std::string_view const held = held_;
  if (place_ != CallPlace::middle) {
    std::size_t const begin = std::min(held.find_first_not_of(" \n\r\t"), held.size());
    if (begin == held.size()) {  // white space alone
      if (!at_end) return false;
      if (place_ == CallPlace::start) say(begin, out);
      held_.clear();
      return true;
    }
    auto const found = find_mark(held.substr(begin), marks);
    if (found.place == 0 && found.size > 0) return read_calls(begin, found.size, at_end, out);
    if (found.place == 0 && !at_end) return false;  // it may become one
    say(begin, out);
    place_ = CallPlace::middle;
    return true;
  }
  auto const found = find_mark(held, marks);
  if (found.size > 0 && found.place == 0) return read_calls(0, found.size, at_end, out);
  if (found.size == 0 && at_end) {
    say(held.size(), out);
    return true;
  }
  say(found.place, out);
  return found.size > 0;
}

bool CallParser::read_calls(std::size_t begin, std::size_t mark, bool at_end, std::vector<AnswerPiece>& out) {
  CallReader in(std::string_view(held_).substr(begin), at_end, memory_);
  auto calls = format_->read(in, tools_);
  if (in.lacks_text()) return false;
  if (!in.good()) {
    say(begin + mark, out);
    return true;
  }
  held_.erase(0, begin + in.position());
  memory_ = {};
  place_ = CallPlace::after_call;
  for (auto& call : calls) out.emplace_back(std::move(call));
  return true;
}

}  // namespace expertmesh
