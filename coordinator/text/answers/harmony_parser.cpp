#include "coordinator/text/answers/harmony_parser.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/answers/marks.h"
#include "coordinator/text/answers/tool_set.h"

namespace expertmesh {
namespace {

constexpr std::string_view kStart = "<|start|>";
constexpr std::string_view kChannel = "<|channel|>";
constexpr std::string_view kConstrain = "<|constrain|>";
constexpr std::string_view kMessage = "<|message|>";
constexpr std::string_view kRecipient = "to=";
constexpr std::string_view kFunctions = "functions.";

// The word after `key`, empty if it is not there.
std::string word_after(std::string_view header, std::string_view key) {
  std::size_t const place = header.find(key);
  if (place == std::string_view::npos) return {};
  std::string_view const rest = header.substr(place + key.size());
  return std::string(rest.substr(0, rest.find_first_of(" \n\t<")));
}

}  // namespace

std::vector<std::string_view> const& HarmonyParser::marks() {
  static std::vector<std::string_view> const marks{kStart,    kChannel,   kConstrain,  kMessage,
                                                   "<|end|>", "<|call|>", "<|return|>"};
  return marks;
}

std::vector<AnswerPiece> HarmonyParser::push(std::string_view text) {
  std::vector<AnswerPiece> out;
  held_ += text;
  while (!held_.empty() && step(false, out)) {
  }
  return out;
}

std::vector<AnswerPiece> HarmonyParser::finish() {
  std::vector<AnswerPiece> out;
  while (!held_.empty()) step(true, out);
  if (place_ == Place::message) end_message(out);
  return out;
}

// Of text between messages: is it a header without <|start|>, a message without a header, or neither?
bool HarmonyParser::open_message(std::string_view text, bool complete) {
  std::string_view const rest = text.substr(std::min(text.find_first_not_of(" \n\r\t"), text.size()));
  if (!complete && kRecipient.starts_with(rest)) return false;
  if (rest.starts_with(kRecipient))
    place_ = Place::header;
  else if (!rest.empty())
    begin_message();
  return true;
}

bool HarmonyParser::step(bool at_end, std::vector<AnswerPiece>& out) {
  auto const [place, size] = find_mark(held_, marks());
  std::string const text = held_.substr(0, size == 0 && at_end ? held_.size() : place);
  if (place_ == Place::between && !open_message(text, at_end || size > 0)) return false;
  if (!text.empty()) take_text(text, out);
  std::string const mark = held_.substr(text.size(), size);
  held_.erase(0, text.size() + size);
  if (size > 0) take_mark(mark, out);
  return size > 0;
}

void HarmonyParser::take_text(std::string_view text, std::vector<AnswerPiece>& out) {
  if (place_ == Place::between) return;  // white space
  if (place_ == Place::header)
    header_ += text;
  else if (kind_ == Kind::call)
    call_ += text;
  else if (kind_ == Kind::reasoning)
    out.emplace_back(ReasoningPiece{std::string(text)});
  else
    out.emplace_back(ContentPiece{std::string(text)});
}

void HarmonyParser::take_mark(std::string_view mark, std::vector<AnswerPiece>& out) {
  if (mark == kMessage) {
    if (place_ == Place::message) end_message(out);
    return begin_message();
  }
  if (place_ == Place::message) end_message(out);
  if (mark == kStart || mark == kChannel || mark == kConstrain) {
    place_ = Place::header;
    if (mark == kStart) header_.clear();
    header_ += mark;
    return;
  }
  place_ = Place::between;
  header_.clear();
}

void HarmonyParser::begin_message() {
  recipient_ = word_after(header_, kRecipient);
  kind_ = recipient_.starts_with(kFunctions) && options_.calls                ? Kind::call
          : word_after(header_, kChannel) == "analysis" && options_.reasoning ? Kind::reasoning
                                                                              : Kind::content;
  header_.clear();
  place_ = Place::message;
}

void HarmonyParser::end_message(std::vector<AnswerPiece>& out) {
  place_ = Place::between;
  if (kind_ != Kind::call) return;
  std::string const name = recipient_.substr(kFunctions.size());
  std::string const text = std::exchange(call_, {});
  if (auto arguments = object_text(text); arguments && !name.empty())
    out.emplace_back(ToolCall{.name = name, .arguments = std::move(*arguments)});
  else if (!text.empty())
    out.emplace_back(ContentPiece{text});
}

}  // namespace expertmesh
