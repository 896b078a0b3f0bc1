// Every format: what a text says, whole and cut in every way; and that nothing of it is lost or said twice.
#include "coordinator/text/answer_parser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "tests/support/few_cases.h"

namespace expertmesh {
namespace {

std::string const kTools = R"([
  {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
      "city": {"type": "string"}, "days": {"type": "integer"}, "hourly": {"type": "boolean"}, "zip": {"type": ["string", "null"]},
      "filter": {"type": "object"}}}}},
  {"type": "function", "function": {"name": "now"}}])";

// C{…} content, R{…} reasoning, name(arguments) a call; neighbours of one kind joined.
std::string outline(std::vector<AnswerPiece> const& pieces) {
  std::string text;
  std::string open;
  auto const say = [&](std::string const& kind, std::string const& what) {
    if (open != kind) text += (open.empty() ? "" : "}") + kind + "{";
    open = kind;
    text += what;
  };
  for (auto const& piece : pieces) {
    if (auto const* content = std::get_if<ContentPiece>(&piece)) say("C", content->text);
    if (auto const* reasoning = std::get_if<ReasoningPiece>(&piece)) say("R", reasoning->text);
    if (auto const* call = std::get_if<ToolCall>(&piece)) {
      if (!open.empty()) text += "}";
      open.clear();
      text += call->name + "(" + call->arguments + ")" + (call->id.empty() ? "" : "#" + call->id);
    }
  }
  return text + (open.empty() ? "" : "}");
}

void append(std::vector<AnswerPiece>& all, std::vector<AnswerPiece> more) {
  for (auto& piece : more) {
    EXPECT_NE(outline({piece}), "C{}");
    EXPECT_NE(outline({piece}), "R{}");
    all.push_back(std::move(piece));
  }
}

std::string parsed(AnswerParserOptions const& options, std::vector<std::string> const& pieces) {
  auto const parser = make_answer_parser(options);
  std::vector<AnswerPiece> out;
  for (auto const& piece : pieces) append(out, parser->push(piece));
  append(out, parser->finish());
  return outline(out);
}

std::vector<std::string> bytes_of(std::string const& text) {
  std::vector<std::string> bytes;
  for (char c : text) bytes.emplace_back(1, c);
  return bytes;
}

// Of the whole; every cut in two, single bytes, and random cuts must agree.
std::string outcome(AnswerParserOptions const& options, std::string const& text) {
  std::string const whole = parsed(options, {text});
  EXPECT_EQ(parsed(options, bytes_of(text)), whole) << text;
  for (std::size_t cut = 1; cut < text.size(); ++cut)
    EXPECT_EQ(parsed(options, {text.substr(0, cut), text.substr(cut)}), whole) << text << " cut at " << cut;
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> pieces;
    for (std::size_t begin = 0; begin < text.size(); begin += pieces.back().size())
      pieces.push_back(text.substr(begin, 1 + random() % 9));
    EXPECT_EQ(parsed(options, pieces), whole) << text;
  }
  return whole;
}

AnswerParserOptions calls(std::string const& format) {
  return {.formats = {.tool_calls = format, .reasoning = "none"}, .tools = kTools};
}

struct Answer {
  std::string text;
  std::string expected;
};

void expect_all(AnswerParserOptions const& options, std::vector<Answer> const& cases) {
  for (auto const& [text, expected] : cases) {
    EXPECT_EQ(outcome(options, text), expected) << text;
    for (std::size_t size = 0; size < text.size(); ++size)
      EXPECT_EQ(parsed(options, bytes_of(text.substr(0, size))), parsed(options, {text.substr(0, size)})) << text;
  }
}

std::string const kHermes = R"(<tool_call>
{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}
</tool_call>)";

TEST(AnswerParser, Hermes) {
  std::string const call = R"(get_weather({"city":"Köln","days":2}))";
  expect_all(calls("hermes"),
             {{"", ""},
              {"Hello.", "C{Hello.}"},
              {"  \n", "C{  \n}"},
              {kHermes, call},
              {"\n\n" + kHermes + "\n", call},
              {"Let me look.\n" + kHermes + "\n" + kHermes, "C{Let me look.\n}" + call + call},
              {kHermes + "\nThere.", call + "C{\nThere.}"},
              {R"(<tool_call>{"name": "now", "arguments": {}}</tool_call>)", "now({})"},
              {R"(<tool_call>{"name": "now"}</tool_call>)", "now({})"},
              {R"(<tool_call>{"name": "now", "arguments": "{\"a\": 1}"}</tool_call>)", R"(now({"a": 1}))"},
              {R"(<tool_call>{"name": "f", "arguments": {"x": "</tool_call> } \" ]"}}</tool_call>)",
               R"(f({"x":"</tool_call> } \" ]"}))"}});
}

TEST(AnswerParser, WhatIsNoCallIsContent) {
  for (std::string const& text :
       {std::string("<tool_call>"), std::string("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\""),
        std::string(R"(<tool_call>{"name": "f", "arguments": {}})"),
        std::string(R"(<tool_call>{"name": "f"}</tool_cal)"),
        std::string(R"(<tool_call>{"name": 1, "arguments": {}}</tool_call>)"),
        std::string(R"(<tool_call>{"arguments": {}}</tool_call>)"),
        std::string(R"(<tool_call>{"name": "f", "arguments": [1]}</tool_call>)"),
        std::string(R"(<tool_call>{"name": "f", "arguments": "no"}</tool_call>)"),
        std::string(R"(<tool_call>{name: "f"}</tool_call>)"), std::string(R"(<tool_call>{"name": "f"]</tool_call>)"),
        std::string("<tool_call>hello</tool_call>"), std::string("a < b <tool"), "<tool_call>" + std::string(100, '{'),
        std::string("</tool_call>"), std::string("<tool_call> \n\t")})
    EXPECT_EQ(outcome(calls("hermes"), text), "C{" + text + "}");
  // A broken call does not take the next one with it.
  EXPECT_EQ(outcome(calls("hermes"), "<tool_call>{\"name\": \"f\"\n" + kHermes),
            "C{<tool_call>{\"name\": \"f\"\n}get_weather({\"city\":\"Köln\",\"days\":2})");
  EXPECT_EQ(outcome(calls("hermes"), R"(<tool_call>{"name": "f"}<tool_call>{"name": "now"}</tool_call>)"),
            R"(C{<tool_call>{"name": "f"}}now({}))");
}

TEST(AnswerParser, WithoutToolsEverythingIsContent) {
  for (auto const& name : tool_call_parser_names()) {
    if (name == "openai") continue;
    EXPECT_EQ(outcome({.formats = {.tool_calls = name, .reasoning = "none"}}, kHermes), "C{" + kHermes + "}") << name;
  }
  EXPECT_EQ(outcome(calls("none"), kHermes), "C{" + kHermes + "}");
}

TEST(AnswerParser, Xml) {
  std::string const call =
      "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n"
      "</parameter>\n<parameter=hourly>True</parameter>\n<parameter=filter>{\"a\": [1]}</parameter>\n"
      "<parameter=other>x < y\n\n</parameter>\n</function>\n</tool_call>";
  std::string const expected =
      R"(get_weather({"city":"12","days":3,"hourly":true,"filter":{"a":[1]},"other":"x < y\n"}))";
  expect_all(calls("qwen3_coder"), {{call, expected},
                                    {"I see.\n" + call + "\n" + call, "C{I see.\n}" + expected + expected},
                                    {"<function=now></function>", "now({})"},
                                    {"<tool_call><function=now>", "C{<tool_call><function=now>}"},
                                    {"<tool_call>{}</tool_call>", "C{<tool_call>{}</tool_call>}"}});
}

TEST(AnswerParser, KeysAndValues) {
  std::string const call =
      "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days"
      "</arg_key>\n<arg_value>3</arg_value>\n<arg_key>zip</arg_key><arg_value>null</arg_value></tool_call>";
  std::string const expected = R"(get_weather({"city":"12","days":3,"zip":"null"}))";
  expect_all(calls("glm45"),
             {{"\n" + call, expected},
              {call + "\n" + call, expected + expected},
              {"<tool_call>now</tool_call>", "now({})"},
              {"<tool_call>now<arg_key>a</arg_key></tool_call>", "C{<tool_call>now<arg_key>a</arg_key></tool_call>}"}});
}

TEST(AnswerParser, Mistral) {
  expect_all(
      calls("mistral"),
      {{R"([TOOL_CALLS] [{"name": "now", "arguments": {"a": "]"}, "id": "abcdefghi"}, {"name": "f", "arguments": {}}])",
        R"(now({"a":"]"})#abcdefghif({}))"},
       {R"([TOOL_CALLS]now[ARGS]{"a": 1}[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{})", R"(now({"a": 1})f({})#123456789)"},
       {R"([TOOL_CALLS]now{"a": 1})", R"(now({"a": 1}))"},
       {R"(So: [TOOL_CALLS]now[ARGS]{"a": 1)", R"(C{So: [TOOL_CALLS]now[ARGS]{"a": 1})"},
       {"[TOOL_CALLS] []", "C{[TOOL_CALLS] []}"},
       {R"([TOOL_CALLS] [{"name": "f"}, 1])", R"(C{[TOOL_CALLS] [{"name": "f"}, 1]})"}});
}

TEST(AnswerParser, BareJson) {
  std::string const call = R"({"name": "now", "parameters": {"a": {"b": "}"}}})";
  std::string const expected = R"(now({"a":{"b":"}"}}))";
  expect_all(calls("llama3_json"),
             {{call, expected},
              {"\n " + call, expected},
              {"<|python_tag|>" + call + "; " + call, expected + expected},
              {call + ";" + call + ";", expected + expected + "C{;}"},
              {R"({"type": "function", "name": "now", "parameters": {}})", "now({})"},
              {"Look: " + call, "C{Look: " + call + "}"},
              {"Look: <|python_tag|>" + call, "C{Look: }" + expected},
              {R"({"name": "unknown", "parameters": {}})", R"(C{{"name": "unknown", "parameters": {}}})"},
              {R"({"answer": 42})", R"(C{{"answer": 42}})"},
              {R"(<|python_tag|>search.call(query="x"))", R"(C{<|python_tag|>search.call(query="x")})"}});
}

TEST(AnswerParser, Pythonic) {
  std::vector<Answer> const cases{
      {R"([get_weather(city='K"ö\'ln\n', days=-2, hourly=True, filter={'a': [1, 2.5, None], "b": (1,)}), now()])",
       R"(get_weather({"city": "K\"ö'ln\n", "days": -2, "hourly": true, "filter": {"a": [1, 2.5, null], "b": [1]}})now({}))"},
      {"<|python_start|>[now()]<|python_end|>", "now({})"},
      {R"([now(a="\u00e9\x41\q")])", R"(now({"a": "éA\\q"}))"},
      {"[1] says so", "C{[1] says so}"},
      {"[unknown(a=1)]", "C{[unknown(a=1)]}"},
      {"[now(a=b)]", "C{[now(a=b)]}"},
      {"[now(1)]", "C{[now(1)]}"},
      {"[now(a=1", "C{[now(a=1}"},
      {"See [now()]", "C{See [now()]}"}};
  expect_all(calls("llama4_pythonic"), cases);
  expect_all(calls("llama4_json"), cases);
  EXPECT_EQ(outcome(calls("llama4_json"), R"(<|python_start|>{"name": "now", "parameters": {}}<|python_end|>)"),
            "now({})");
  EXPECT_EQ(outcome(calls("llama4_pythonic"), "[now(a=" + std::string(3000, '[')),
            "C{[now(a=" + std::string(3000, '[') + "}");
}

TEST(AnswerParser, DeepSeek) {
  std::string const v3 =
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{\"a\": \"```\"}\n```<｜tool▁call▁end｜>";
  std::string const v31 = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>";
  std::string const begin = "<｜tool▁calls▁begin｜>";
  std::string const end = "<｜tool▁calls▁end｜>";
  expect_all(calls("deepseek_v3"),
             {{begin + v3 + "\n" + v3 + end, R"(now({"a": "```"})now({"a": "```"}))"},
              {"Yes." + begin + v31 + v31 + end, R"(C{Yes.}now({"a": 1})now({"a": 1}))"},
              {begin + v31 + "oops" + end, R"(now({"a": 1})C{oops)" + end + "}"},
              {begin + end, "C{" + begin + end + "}"},
              {begin + v31.substr(0, v31.size() - 3), "C{" + begin + v31.substr(0, v31.size() - 3) + "}"}});
}

TEST(AnswerParser, Harmony) {
  AnswerParserOptions const options{.formats = {.tool_calls = "openai", .reasoning = "openai_gptoss"}, .tools = kTools};
  std::string const thought = "<|channel|>analysis<|message|>I think.<|end|>";
  expect_all(
      options,
      {{"<|channel|>final<|message|>Hello<|return|>", "C{Hello}"},
       {thought + "<|start|>assistant<|channel|>final<|message|>Hello", "R{I think.}C{Hello}"},
       {thought +
            "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{\"a\": 1}<|call|>",
        R"(R{I think.}now({"a": 1}))"},
       {thought + "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{\"a\": 1}",
        R"(R{I think.}now({"a": 1}))"},
       {" to=functions.now<|channel|>commentary<|message|>{}<|call|>", "now({})"},
       {"<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.now<|message|>{\"a\": 1",
        R"(C{I will look.{"a": 1})"},
       {"<|channel|>commentary to=functions.now<|message|>[1]<|call|>", "C{[1]}"},
       {"No header. a <| b", "C{No header. a <| b}"},
       {"to be or not", "C{to be or not}"},
       {"<|channel|>analysis<|message|>Cut<|channel|>final<|message|>Hello", "R{Cut}C{Hello}"},
       {"<|channel|>analysis to=python<|message|>1+1<|call|>", "R{1+1}"},
       {"<|channel|>fin", ""}});
  auto silent = options;
  silent.tools.clear();
  EXPECT_EQ(outcome(silent, "<|channel|>commentary to=functions.now<|message|>{}<|call|>"), "C{{}}");
  silent.formats.reasoning = "none";
  EXPECT_EQ(outcome(silent, thought), "C{I think.}");
}

TEST(AnswerParser, Thinking) {
  auto options = calls("hermes");
  options.formats.reasoning = "deepseek_r1";
  std::vector<Answer> const both{
      {"<think>a</think>b", "R{a}C{b}"},
      {"\n<think>\na < b\n</think>\n\n" + kHermes, "R{\na < b\n}get_weather({\"city\":\"Köln\",\"days\":2})"},
      {"<think>" + kHermes + "</think>x", "R{" + kHermes + "}C{x}"},
      {"<think>cut </thi", "R{cut </thi}"},
      {"<think></think>x", "C{x}"}};
  expect_all(options, both);
  expect_all(
      options,
      {{"Hi <think>a</think>", "C{Hi <think>a</think>}"}, {" <thin", "C{ <thin}"}, {"a</think>b", "C{a</think>b}"}});
  options.prompt = "<|im_start|>assistant\n<think>\n";
  expect_all(options, both);
  expect_all(options, {{"a</think>b", "R{a}C{b}"}, {"\n<thin", "R{\n<thin}"}, {"a", "R{a}"}});
  options.prompt = "what does <think> mean?<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(outcome(options, "a</think>b"), "C{a</think>b}");
  options.prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
  EXPECT_EQ(outcome(options, "a"), "C{a}");
  options.prompt = "<|im_start|>assistant\n<think>\nI have";
  options.continues_message = true;
  EXPECT_EQ(outcome(options, " an idea</think>b"), "R{ an idea}C{b}");
}

TEST(AnswerParser, FormatsAreFoundByTheirMarks) {
  auto const found = [](std::string const& templates, std::vector<std::string> const& vocabulary = {}) {
    auto const formats = detect_answer_formats(
        templates, [&](std::string_view token) { return std::ranges::count(vocabulary, token) > 0; });
    return formats.tool_calls + " " + formats.reasoning;
  };
  EXPECT_EQ(found(""), "none none");
  EXPECT_EQ(found("{{ messages }}"), "none none");
  EXPECT_EQ(found("<tool_call>{{ x }}</tool_call>"), "hermes none");
  EXPECT_EQ(found("<tool_call><function= <think></think>"), "qwen3_coder deepseek_r1");
  EXPECT_EQ(found("<tool_call><arg_key></think>"), "glm45 deepseek_r1");
  EXPECT_EQ(found("[TOOL_CALLS]"), "mistral none");
  EXPECT_EQ(found("<|channel|><|message|>"), "openai openai_gptoss");
  EXPECT_EQ(found("<｜tool▁calls▁begin｜>", {"<think>", "</think>"}), "deepseek_v3 deepseek_r1");
  EXPECT_EQ(found("<|python_start|>"), "llama4_json none");
  EXPECT_EQ(found("x", {"<|python_tag|>"}), "llama3_json none");
}

// Long arguments in many pieces take time in proportion, not its square: no byte of them is looked at again.
TEST(AnswerParser, LongCallsInSmallPieces) {
  std::string const text(2 * test::kLongText, '}');
  for (auto const& [format, begin, end] : std::vector<std::array<std::string, 3>>{
           {"hermes", R"(<tool_call>{"name": "now", "arguments": {"a":")", "\"}}</tool_call>"},
           {"qwen3_coder", "<function=now><parameter=a>", "</parameter></function>"}}) {
    auto const parser = make_answer_parser(calls(format));
    EXPECT_TRUE(parser->push(begin).empty());
    for (std::size_t i = 0; i < text.size(); i += 4) EXPECT_TRUE(parser->push(text.substr(i, 4)).empty());
    auto const pieces = parser->push(end);
    ASSERT_EQ(pieces.size(), 1U) << format;
    EXPECT_EQ(std::get<ToolCall>(pieces[0]).arguments, R"({"a":")" + text + R"("})") << format;
  }
}

}  // namespace
}  // namespace expertmesh
