// What a model writes -> what it says, what it thinks, and the functions it wants called. Models mark these in ways of
// their own (answers/); a parser takes the text in pieces as it comes. How it is cut changes nothing: neighbouring
// pieces of one kind joined, the outcome is that of the whole text. A call is given out once it is complete and well
// formed; what turns out to be none is content. Pure.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace expertmesh {

struct ContentPiece {
  std::string text;
};
struct ReasoningPiece {
  std::string text;
};
struct ToolCall {
  std::string name;
  std::string arguments;  // text of a JSON object
  std::string id{};       // empty if the model gave none
};
using AnswerPiece = std::variant<ContentPiece, ReasoningPiece, ToolCall>;

class AnswerParser {
 public:
  virtual ~AnswerParser() = default;
  // What is known once `text` has come; text is held back while it could still become a mark or a call.
  virtual std::vector<AnswerPiece> push(std::string_view text) = 0;
  // No text comes any more: what was held back.
  virtual std::vector<AnswerPiece> finish() = 0;
};

// How a model writes calls and reasoning, by the names of vLLM's options; "none" leaves them in the content.
struct AnswerFormats {
  std::string tool_calls = "none";
  std::string reasoning = "none";
};

// Every name, "none" last; several may stand for one format.
std::vector<std::string> tool_call_parser_names();
std::vector<std::string> reasoning_parser_names();

// The formats whose marks the chat templates (all of them joined) write, or the vocabulary has as tokens of their own.
AnswerFormats detect_answer_formats(std::string_view templates,
                                    std::function<bool(std::string_view token)> const& in_vocabulary);

// Tokens that have to stay in the text for the parser, special or not; with_calls: the request has tools.
std::vector<std::string> answer_mark_tokens(AnswerFormats const& formats, bool with_calls);

struct AnswerParserOptions {
  AnswerFormats formats;
  std::string tools{};             // the request's, JSON; empty: calls are left in the content
  std::string_view prompt{};       // what the answer goes on from: it may have begun the reasoning already
  bool continues_message = false;  // the prompt ends in the middle of the answer
};
// The names must be known.
std::unique_ptr<AnswerParser> make_answer_parser(AnswerParserOptions const& options);

}  // namespace expertmesh
