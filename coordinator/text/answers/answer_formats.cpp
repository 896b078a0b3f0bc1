// The formats by name, and which of them a model uses.
#include <algorithm>
#include <array>
#include <optional>

#include "common/base/check.h"
#include "coordinator/text/answer_parser.h"
#include "coordinator/text/answers/call_format.h"
#include "coordinator/text/answers/call_parser.h"
#include "coordinator/text/answers/harmony_parser.h"
#include "coordinator/text/answers/think_parser.h"

namespace expertmesh {
namespace {

constexpr char const* kNone = "none";
constexpr char const* kHarmonyCalls = "openai";
constexpr char const* kHarmonyReasoning = "openai_gptoss";

using Strings = std::vector<std::string_view>;

struct CallFormatEntry {
  Strings names;  // the first one is shown
  std::unique_ptr<CallFormat> (*make)();
  Strings signs;   // all of them are in the template of a model that uses it; none: it is not looked for
  Strings tokens;  // that must stay in the text
};

// In the order in which they are looked for.
std::vector<CallFormatEntry> const& call_formats() {
  static std::vector<CallFormatEntry> const formats{
      {{kHarmonyCalls}, nullptr, {"<|channel|>", "<|message|>"}, HarmonyParser::marks()},
      {{"deepseek_v3", "deepseek_v31"},
       deepseek_calls,
       {"<｜tool▁calls▁begin｜>"},
       {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>"}},
      {{"mistral"}, mistral_calls, {"[TOOL_CALLS]"}, {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}},
      {{"glm45"},
       key_value_calls,
       {"<tool_call>", "<arg_key>"},
       {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}},
      {{"qwen3_coder", "qwen3_xml"}, xml_calls, {"<tool_call>", "<function="}, {"<tool_call>", "</tool_call>"}},
      {{"hermes"}, hermes_calls, {"<tool_call>"}, {"<tool_call>", "</tool_call>"}},
      {{"llama4_json"}, bare_json_or_pythonic_calls, {"<|python_start|>"}, {"<|python_start|>", "<|python_end|>"}},
      {{"llama4_pythonic", "pythonic"}, pythonic_calls, {}, {"<|python_start|>", "<|python_end|>"}},
      {{"llama3_json"}, bare_json_calls, {"<|python_tag|>"}, {"<|python_tag|>"}},
  };
  return formats;
}

struct ThinkEntry {
  Strings names;
  ThinkTags tags;
};

std::vector<ThinkEntry> const& think_formats() {
  static std::vector<ThinkEntry> const formats{
      {{"deepseek_r1", "qwen3", "glm45"}, {"<think>", "</think>"}},
      {{"mistral"}, {"[THINK]", "[/THINK]"}},
  };
  return formats;
}

template <class Entry>
Entry const* entry_of(std::vector<Entry> const& entries, std::string_view name) {
  auto const place =
      std::ranges::find_if(entries, [&](auto const& entry) { return std::ranges::count(entry.names, name) > 0; });
  return place == entries.end() ? nullptr : &*place;
}

template <class Entry>
void add_names(std::vector<Entry> const& entries, std::vector<std::string>& names) {
  for (auto const& entry : entries) names.insert(names.end(), entry.names.begin(), entry.names.end());
}

// Its marks are everywhere in its answers, so that one parser reads both.
bool is_harmony(AnswerFormats const& formats) {
  return formats.tool_calls == kHarmonyCalls || formats.reasoning == kHarmonyReasoning;
}

class PlainParser final : public AnswerParser {
 public:
  std::vector<AnswerPiece> push(std::string_view text) override {
    if (text.empty()) return {};
    return {ContentPiece{std::string(text)}};
  }
  std::vector<AnswerPiece> finish() override { return {}; }
};

}  // namespace

std::vector<std::string> tool_call_parser_names() {
  std::vector<std::string> names;
  add_names(call_formats(), names);
  names.emplace_back(kNone);
  return names;
}

std::vector<std::string> reasoning_parser_names() {
  std::vector<std::string> names{kHarmonyReasoning};
  add_names(think_formats(), names);
  names.emplace_back(kNone);
  return names;
}

AnswerFormats detect_answer_formats(std::string_view templates,
                                    std::function<bool(std::string_view token)> const& in_vocabulary) {
  AnswerFormats formats;
  auto const written = [&](std::string_view sign) { return templates.find(sign) != std::string_view::npos; };
  for (auto const& entry : call_formats())
    if (!entry.signs.empty() && std::ranges::all_of(entry.signs, written)) {
      formats.tool_calls = entry.names.front();
      break;
    }
  // A tag that no template writes tells a family too: Llama's templates of 3.2 and later do not.
  if (formats.tool_calls == kNone && !templates.empty())
    for (auto const& [sign, name] : {std::pair{"<|python_start|>", "llama4_json"}, {"<|python_tag|>", "llama3_json"}})
      if (formats.tool_calls == kNone && in_vocabulary(sign)) formats.tool_calls = name;

  if (formats.tool_calls == kHarmonyCalls) formats.reasoning = kHarmonyReasoning;
  for (auto const& [names, tags] : think_formats())
    if (formats.reasoning == kNone && (written(tags.close) || (in_vocabulary(tags.open) && in_vocabulary(tags.close))))
      formats.reasoning = names.front();
  return formats;
}

std::vector<std::string> answer_mark_tokens(AnswerFormats const& formats, bool with_calls) {
  std::vector<std::string> tokens;
  auto const add = [&](Strings const& more) { tokens.insert(tokens.end(), more.begin(), more.end()); };
  if (is_harmony(formats))
    add(HarmonyParser::marks());
  else if (auto const* calls = entry_of(call_formats(), formats.tool_calls); calls && with_calls)
    add(calls->tokens);
  if (auto const* think = entry_of(think_formats(), formats.reasoning)) add({think->tags.open, think->tags.close});
  return tokens;
}

std::unique_ptr<AnswerParser> make_answer_parser(AnswerParserOptions const& options) {
  auto const& [calls_name, reasoning_name] = options.formats;
  bool const wants_calls = !options.tools.empty();
  if (is_harmony(options.formats))
    return std::make_unique<HarmonyParser>(HarmonyParser::Options{.calls = wants_calls && calls_name == kHarmonyCalls,
                                                                  .reasoning = reasoning_name == kHarmonyReasoning});

  std::unique_ptr<AnswerParser> parser = std::make_unique<PlainParser>();
  if (wants_calls && calls_name != kNone) {
    auto const* entry = entry_of(call_formats(), calls_name);
    EM_CHECK(entry, calls_name);
    parser = std::make_unique<CallParser>(entry->make(), ToolSet(options.tools));
  }
  if (reasoning_name == kNone) return parser;
  auto const* entry = entry_of(think_formats(), reasoning_name);
  EM_CHECK(entry, reasoning_name);
  bool const opened = leaves_open(entry->tags, options.prompt, options.continues_message);
  return std::make_unique<ThinkParser>(entry->tags, opened, std::move(parser));
}

}  // namespace expertmesh
