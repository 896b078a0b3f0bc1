// Any text in any pieces: the outcome is that of the whole, and what holds no call is all content. First bytes: format
// of calls, of reasoning, whether the prompt opened it, and how the text is cut.
#include <cstdlib>

#include "common/base/check.h"
#include "coordinator/text/answer_parser.h"

namespace expertmesh {
namespace {

std::string const kTools = R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {
    "a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "object"}}}}}])";

struct Outcome {
  std::string content;
  std::string reasoning;
  std::string calls;
  bool operator==(Outcome const&) const = default;
};

void add(std::vector<AnswerPiece> const& pieces, Outcome& out) {
  for (auto const& piece : pieces) {
    if (auto const* content = std::get_if<ContentPiece>(&piece)) out.content += content->text;
    if (auto const* reasoning = std::get_if<ReasoningPiece>(&piece)) out.reasoning += reasoning->text;
    if (auto const* call = std::get_if<ToolCall>(&piece)) {
      EM_CHECK(!call->name.empty() && call->arguments.starts_with('{'), call->name << " " << call->arguments);
      out.calls += std::to_string(out.content.size()) + call->name + call->arguments + call->id + "\n";
    }
  }
}

void check(AnswerParserOptions const& options, std::string_view text, std::size_t cut) {
  Outcome whole;
  auto parser = make_answer_parser(options);
  add(parser->push(text), whole);
  add(parser->finish(), whole);

  Outcome parts;
  parser = make_answer_parser(options);
  for (std::size_t begin = 0, size = 0; begin < text.size(); begin += size) {
    size = 1 + (begin * 31 + cut) % (cut % 7 + 1);
    add(parser->push(text.substr(begin, size)), parts);
  }
  add(parser->finish(), parts);
  EM_CHECK(parts == whole, "cut up it gives '" << parts.content << "', whole '" << whole.content << "'");

  bool const plain = options.formats.reasoning == "none" && options.formats.tool_calls != "openai";
  if (plain && whole.calls.empty()) EM_CHECK(whole.content == text, "'" << whole.content << "'");
}

}  // namespace
}  // namespace expertmesh

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  if (size < 4) return 0;
  static auto const calls = tool_call_parser_names();
  static auto const reasoning = reasoning_parser_names();
  AnswerParserOptions options{
      .formats = {.tool_calls = calls[data[0] % calls.size()], .reasoning = reasoning[data[1] % reasoning.size()]},
      .tools = kTools};
  if (data[2] % 2 == 1) options.prompt = "<think>\n";
  check(options, std::string_view(reinterpret_cast<char const*>(data) + 4, size - 4), data[3]);
  return 0;
}
