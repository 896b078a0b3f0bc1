#include "coordinator/text/answers/think_parser.h"

#include <algorithm>
#include <iterator>

#include "coordinator/text/answers/marks.h"

namespace expertmesh {

bool leaves_open(ThinkTags const& tags, std::string_view prompt, bool continues_message) {
  std::size_t const end = prompt.find_last_not_of(" \n\r\t");
  if (end != std::string_view::npos && prompt.substr(0, end + 1).ends_with(tags.open)) return true;
  if (!continues_message) return false;  // an open tag before that is somebody's text
  std::size_t const open = prompt.rfind(tags.open);
  std::size_t const close = prompt.rfind(tags.close);
  return open != std::string_view::npos && (close == std::string_view::npos || close < open);
}

std::vector<AnswerPiece> ThinkParser::push(std::string_view text) {
  std::vector<AnswerPiece> out;
  held_ += text;
  while (!held_.empty() && step(false, out)) {
  }
  return out;
}

std::vector<AnswerPiece> ThinkParser::finish() {
  std::vector<AnswerPiece> out;
  while (!held_.empty()) step(true, out);
  std::ranges::move(content_->finish(), std::back_inserter(out));
  return out;
}

bool ThinkParser::step(bool at_end, std::vector<AnswerPiece>& out) {
  if (place_ == Place::content) {
    std::ranges::move(content_->push(held_), std::back_inserter(out));
    held_.clear();
    return true;
  }
  if (place_ == Place::start) {
    std::string_view const held = held_;
    std::size_t const begin = std::min(held.find_first_not_of(" \n\r\t"), held.size());
    std::string_view const rest = held.substr(begin);
    if (rest.starts_with(tags_.open)) {
      held_.erase(0, begin + tags_.open.size());
      place_ = Place::reasoning;
      return true;
    }
    if (!at_end && tags_.open.starts_with(rest)) return false;
    place_ = opened_ ? Place::reasoning : Place::content;
    return true;
  }
  auto const [place, size] = find_mark(held_, {tags_.close});
  std::size_t const known = size == 0 && at_end ? held_.size() : place;
  if (known > 0) out.emplace_back(ReasoningPiece{held_.substr(0, known)});
  held_.erase(0, known + size);
  if (size > 0) place_ = Place::content;
  return size > 0;
}

}  // namespace expertmesh
