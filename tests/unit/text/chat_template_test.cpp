#include "coordinator/text/chat_template.h"
#include "tests/support/few_cases.h"
#include "tests/support/goldens_dir.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <tuple>
#include <vector>

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;  // templates see keys in the order they were given

std::string read(fs::path const& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// A model directory that holds a template and nothing else.
struct TemplateDir {
  fs::path const path = fs::temp_directory_path() / ("em_template_" + std::to_string(getpid()));
  explicit TemplateDir(std::string const& source) {
    fs::create_directories(path);
    std::ofstream(path / "chat_template.jinja") << source;
    std::ofstream(path / "tokenizer_config.json") << R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})";
  }
  ~TemplateDir() { fs::remove_all(path); }
};

ChatTemplateOptions options(std::chrono::milliseconds deadline) {
  return {.script = fs::path(EM_SOURCE_DIR) / "coordinator/text/render_chat_template.py",
          .processes = 1,
          .deadline = deadline};
}

ChatTemplates with_source(std::string const& source, std::chrono::milliseconds deadline = std::chrono::seconds(20)) {
  return {{.templates = {{"default", source}}, .variables = {}}, options(deadline)};
}

OrderedJson const kRow = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};

TEST(ChatTemplates, EveryGoldenCase) {
  fs::path const dir = test::goldens_dir() / "text/templates";
  OrderedJson const golden = OrderedJson::parse(read(dir / "golden.json"));
  std::map<std::string, std::vector<OrderedJson>> cases;  // by template
  for (auto const& c : golden["cases"]) cases[c["template"].get<std::string>()].push_back(c);
  std::size_t rendered = 0;
  std::size_t number = 0;
  for (auto const& [name, of_template] : cases) {
    if (test::kFewCases && ++number % 4 != 0) continue;  // each starts a Python
    ChatTemplates templates = {read_chat_template_file(dir / (name + ".jinja")), options(std::chrono::seconds(20))};
    for (auto const& c : of_template) {
      OrderedJson row = golden["variables"];
      for (char const* field : {"messages", "tools", "documents", "add_generation_prompt"}) row[field] = c[field];
      row["now"] = golden["now"];
      row.update(c["kwargs"]);
      auto const result = templates.render(row.dump());
      std::string const which = name + "/" + c["conversation"].get<std::string>();
      if (c.contains("rendered")) {
        ASSERT_TRUE(result.ok()) << which << ": " << result.error().message;
        EXPECT_EQ(result.value(), c["rendered"].get<std::string>()) << which;
        ++rendered;
        continue;
      }
      ASSERT_FALSE(result.ok()) << which << " must be refused";
      EXPECT_EQ(result.error().status, 400);
      if (c["error"] == "TemplateError")
        EXPECT_EQ(result.error().message, c["error_message"].get<std::string>()) << which;
      else
        EXPECT_TRUE(result.error().message.starts_with(c["error"].get<std::string>() + ": "))
            << which << ": " << result.error().message;
    }
  }
  EXPECT_GT(rendered, test::kFewCases ? 50U : 250U);
}

// What a template may try, and what has to be said of it. The next row must render whatever it did.
TEST(ChatTemplates, NoTemplateGetsOutOrHoldsUp) {
  struct Attempt {
    std::string source;
    std::string in_error;
  };
  std::string const paren(20000, '(');
  std::string const kTooLong = "took more than";
  std::vector<Attempt> const attempts{
      {"{{ ''.__class__.__mro__ }}", "SecurityError"},
      {"{{ raise_exception.__globals__.os }}", "SecurityError"},
      {"{{ strftime_now.__func__.__globals__['os'].environ }}", "SecurityError"},
      {"{{ self.__init__.__globals__.os }}", "SecurityError"},
      {"{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"},
      {"{{ (lipsum|attr('__globals__')).os }}", "SecurityError"},
      {"{{ ('{0.__class__.__mro__}'|attr('format'))(1) }}", ""},
      {"{{ messages.append(1) }}", "SecurityError"},
      {"{% set ns = namespace() %}{% set ns._a = 1 %}", "SecurityError"},
      {"{% set ns = namespace({'_a': 1}) %}", "SecurityError"},
      {"{{ namespace(**{'__class__': 1}) }}", "SecurityError"},
      {"{{ dict.update({'a': 1}, {'b': 2}) }}", "UndefinedError"},
      {"{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "SyntaxError"},
      {"{{ open('/etc/passwd') }}", "UndefinedError"},
      {"{% include '/etc/passwd' %}", "TypeError"},
      {"{% extends 'x' %}", "TypeError"},
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", kTooLong},
      {"{{ 9 ** (9 ** 9) }}", kTooLong},
      {"{{ messages|length + 8 ** (9 ** (messages|length + 8)) }}", kTooLong},
      {"{{ 'a' * 3000000000 }}", "MemoryError"},
      {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
       "MemoryError"},
      {"{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "longer than"},
      {"{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "RecursionError"},
      {"{{ " + paren + std::string(20000, ')') + " }}", ""},
      {"{% if true %}", "TemplateSyntaxError"},
      {"{{ '\\ud800' }}", "surrogate"},
      {"{{ raise_exception(17) }}", "17"},
      {"{{ raise_exception(messages) }}", "'role'"},
      {"{{ raise_exception('\\ud800') }}", ""},
  };
  std::size_t number = 0;
  for (auto const& [source, in_error] : attempts) {
    if (test::kFewCases && ++number % 4 != 0) continue;  // each starts a Python
    auto const what = source.substr(0, 80);
    ChatTemplates templates = with_source("{% if probe is defined %}{{ 'alive' }}{% else %}" + source + "{% endif %}",
                                          std::chrono::seconds(in_error == kTooLong ? 1 : 60));
    auto const result = templates.render(kRow.dump());
    ASSERT_FALSE(result.ok()) << what << " gave " << result.value().substr(0, 200);
    EXPECT_EQ(result.error().status, 400) << what;
    EXPECT_NE(result.error().message.find(in_error), std::string::npos) << what << ": " << result.error().message;
    if (!templates.compile_error().empty()) continue;
    OrderedJson probe = kRow;
    probe["probe"] = true;
    auto next = templates.render(probe.dump());
    for (int i = 0; i < 20 && in_error == kTooLong && !next.ok(); ++i)  // a busy machine may be as slow as that bound
      next = templates.render(probe.dump());
    EXPECT_EQ(next.ok() ? next.value() : next.error().message, "alive") << what;
  }
}

// Even out of the sandbox there would be no file to open.
TEST(ChatTemplates, TheChildCanOpenNothing) {
  ChatTemplates templates = with_source("{{ 'a'.encode('cp037') }}");  // a codec is a file, loaded when first used
  auto const result = templates.render(kRow.dump());
  ASSERT_FALSE(result.ok()) << result.value();
}

TEST(ChatTemplates, RowsThatAreNone) {
  ChatTemplates templates = with_source("{{ messages|length }}{{ x }}");
  for (std::string const& row :
       {std::string(""), std::string("{"), std::string("[]"), std::string("null"), std::string("{}"),
        std::string(R"({"messages": {}})"), std::string(R"({"messages": [1]})"),
        std::string(R"({"messages": [], "now": "noon"})"), std::string("\xff\xfe", 2),
        std::string(R"({"messages": [], "chat_template_kwargs": [1]})"),
        std::string(R"({"messages": [], "chat_template_kwargs": {"messages": []}})"),
        std::string(R"({"messages": [], "x": "\ud800"})"), std::string(100000, '[')}) {
    auto const result = templates.render(row);
    EXPECT_FALSE(result.ok()) << row.substr(0, 50);
  }
  EXPECT_EQ(templates.render(R"({"messages": [], "x": 1, "chat_template_kwargs": {"x": 2}})").value(), "02");
  EXPECT_EQ(templates.render(R"({"messages": [], "x": "\ud83e\udd8a\u0000"})").value(),
            std::string("0\xF0\x9F\xA6\x8A\0", 6));
}

TEST(ChatTemplates, ATemplateThatDoesNotCompileIsToldAtOnce) {
  ChatTemplates const broken = with_source("a{% if %}");
  EXPECT_NE(broken.compile_error().find("line 1"), std::string::npos) << broken.compile_error();
  ChatTemplates const good = with_source("a");
  EXPECT_EQ(good.compile_error(), "");
}

// Templates written for arguments as text, and those written for an object.
TEST(ChatTemplates, MessagesOfTheApi) {
  auto api = options(std::chrono::seconds(20));
  api.messages_of_api = true;
  std::string const call = "{% set c = messages[0].tool_calls[0].function.arguments %}";
  for (auto const& [source, expected] : std::vector<std::pair<std::string, std::string>>{
           {call + "{{ 'A' + c + 'B' }}", R"(A{"city": "Köln"}B)"},
           {call + "{{ c|tojson }}", R"({"city": "Köln"})"},
           {call + "{{ c is mapping }} {{ c.city }}", "True Köln"},
           {"{{ messages[0].content is none }}<{{ messages[0].content }}>", "True<>"},
           {"{{ messages[0]['content'] + 'x' }}", "x"},
           {"{{ messages[0].content is not none and messages[0].content }}", "False"}}) {
    ChatTemplates templates({.templates = {{"default", source}}, .variables = {}}, api);
    OrderedJson const row = OrderedJson::parse(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"city\": \"K\u00f6ln\"}"}}]}]})");
    auto const result = templates.render(row.dump());
    EXPECT_EQ(result.ok() ? result.value() : result.error().message, expected) << source;
  }
}

// A template that shows whole messages sees the reference's order of their fields.
TEST(ChatTemplates, NamesOfTheReasoningStandInTheReferencesOrder) {
  ChatTemplates templates = with_source("{{ messages[0]|tojson }}");
  OrderedJson const row = {{"messages", {{{"role", "assistant"}, {"reasoning", "r"}, {"content", "c"}}}}};
  auto const result = templates.render(row.dump());
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result.value(),
            R"({"thinking": "r", "role": "assistant", "reasoning": "r", "content": "c", "reasoning_content": "r"})");
}

// Expected: what transformers 5.24 gives.
TEST(ChatTemplates, TheFinalMessageIsContinuedWhereItsTextEnds) {
  std::string const plain = "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}</im>\n{% endfor %}";
  std::string const trims = "{% for m in messages %}<im>{{ m.role }}\n{{ m.content|trim }}</im>\n{% endfor %}";
  std::string const repeats = "{% for m in messages %}[{{ m.content }}]{% endfor %}END{{ messages[0].content }}";
  std::string const parts = "{% for part in messages[1].content %}<{{ part.text }}>{% endfor %}";
  std::string const user = "<im>user\nSure</im>\n<im>assistant\n";
  OrderedJson const two_parts = {{{"type", "text"}, {"text", "one"}}, {{"type", "text"}, {"text", "two "}}};
  for (auto const& [source, content, expected] :
       std::vector<std::tuple<std::string, OrderedJson, std::string>>{{plain, " Sure \n", user + " Sure \n"},
                                                                      {trims, " Sure \n", user + "Sure"},
                                                                      {plain, "", user},
                                                                      {plain, "  ", user + "  "},
                                                                      {plain, "im", user + "im"},
                                                                      {plain, "</im>", user + "</im>"},
                                                                      {repeats, "Sure", "[Sure][Sure"},
                                                                      {parts, two_parts, "<one><two "}}) {
    ChatTemplates templates = with_source(source);
    OrderedJson const row = {
        {"messages", {{{"role", "user"}, {"content", "Sure"}}, {{"role", "assistant"}, {"content", content}}}},
        {"continue_final_message", true}};
    auto const result = templates.render(row.dump());
    EXPECT_EQ(result.ok() ? result.value() : result.error().message, expected) << source << content;
  }
  ChatTemplates templates = with_source(plain);
  ChatTemplates without_text = with_source("{{ messages|length }}");
  for (char const* messages :
       {"[]", R"([{"role": "assistant"}])", R"([{"role": "assistant", "content": null}])",
        R"([{"role": "assistant", "content": []}])", R"([{"role": "assistant", "content": [{"type": "image"}]}])"}) {
    std::string const row = R"({"continue_final_message": true, "messages": )" + std::string(messages) + "}";
    for (ChatTemplates* by : {&templates, &without_text}) {
      auto const result = by->render(row);
      ASSERT_FALSE(result.ok()) << row << " gave " << result.value();
      EXPECT_NE(result.error().message.find("continue_final_message"), std::string::npos) << result.error().message;
    }
  }
  OrderedJson const row = {{"messages", {{{"role", "assistant"}, {"content", "a"}}}}, {"continue_final_message", true}};
  EXPECT_FALSE(without_text.render(row.dump()).ok());
}

// What Python loads for them only when they are first used is there before the child may open nothing.
TEST(ChatTemplates, WhatTemplatesMayUseIsLoadedBefore) {
  ChatTemplates templates = with_source(
      "{{ '<b>x</b>'|striptags }}{{ ('&lt;'|safe).unescape() }}{% set \u00e9 = 1 %}{{ \u00e9 }}{{ '\\N{BULLET}' }}"
      "{{ 'ab'.encode('idna') }}");
  auto const result = templates.render(kRow.dump());
  EXPECT_EQ(result.ok() ? result.value() : result.error().message, "x<1\u2022b'ab'");
}

TEST(ChatTemplates, SpecialTokensComeFromTheModelsFiles) {
  TemplateDir const model("{{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token }}");
  auto const text = [&](std::string const& config, std::string const& map) {
    std::ofstream(model.path / "tokenizer_config.json") << config;
    std::ofstream(model.path / "special_tokens_map.json") << map;
    return ChatTemplates(read_chat_templates(model.path), options(std::chrono::seconds(20)))
        .render(kRow.dump())
        .value();
  };
  EXPECT_EQ(text(R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null, "add_bos_token": true,
                     "extra_special_tokens": {"image_token": "<i>"}, "added_tokens_decoder": {}})",
                 R"({"bos_token": "old"})"),
            "<s></s><i>");
  EXPECT_EQ(text(R"({"bos_token": "<s>"})", R"({"bos_token": {"content": "<b>"}, "pad_token": "<p>"})"), "<b><p>");
}

TEST(ChatTemplates, EndlessTemplateIsCutAndTheNextRenders) {
  TemplateDir const model(
      "{% for a in range(99999) if not messages %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
      "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
  ChatTemplates templates(read_chat_templates(model.path), options(std::chrono::milliseconds(700)));
  OrderedJson const endless = {{"messages", OrderedJson::array()}};
  EXPECT_FALSE(templates.render(endless.dump()).ok());
  OrderedJson const good = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  auto result = templates.render(good.dump());
  for (int i = 0; i < 20 && !result.ok(); ++i) result = templates.render(good.dump());  // see above
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result.value(), "<s>hi</s>");
}

TEST(ChatTemplates, AModelWithoutATemplateRefuses) {
  ChatTemplates templates(read_chat_templates(test::goldens_dir() / "text/stop_strings"),
                          options(std::chrono::seconds(20)));
  EXPECT_FALSE(templates.has_template());
  auto const result = templates.render(R"({"messages": []})");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().status, 400);
}

// More callers than children: each waits for its turn and gets its own answer.
TEST(ChatTemplates, RendersForSeveralThreadsAtOnce) {
  TemplateDir const model("{{ messages[0].content }}");
  auto two_children = options(std::chrono::seconds(20));
  two_children.processes = 2;
  ChatTemplates templates(read_chat_templates(model.path), two_children);
  std::array<std::string, 6> answers;
  std::vector<std::thread> callers;
  for (std::size_t i = 0; i < answers.size(); ++i)
    callers.emplace_back([&, i] {
      for (int round = 0; round < 10; ++round) {
        OrderedJson const request = {{"messages", {{{"role", "user"}, {"content", std::to_string(i)}}}}};
        auto const result = templates.render(request.dump());
        answers[i] += result.ok() ? result.value() : result.error().message;
      }
    });
  for (auto& caller : callers) caller.join();
  for (std::size_t i = 0; i < answers.size(); ++i) EXPECT_EQ(answers[i], std::string(10, static_cast<char>('0' + i)));
}

TEST(ChatTemplates, PicksTheTemplateForToolsFromAList) {
  TemplateDir const model("unused");
  fs::remove(model.path / "chat_template.jinja");
  std::ofstream(model.path / "tokenizer_config.json") << R"({"chat_template": [
      {"name": "tool_use", "template": "tools {{ messages[0].content }}"},
      {"name": "default", "template": "plain {{ messages[0].content }}"}]})";
  ChatTemplates templates(read_chat_templates(model.path), options(std::chrono::seconds(20)));
  OrderedJson request = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  EXPECT_EQ(templates.render(request.dump()).value(), "plain hi");
  request["tools"] = {{{"type", "function"}}};
  EXPECT_EQ(templates.render(request.dump()).value(), "tools hi");
}

TEST(ChatTemplates, KilledChildIsReplaced) {
  TemplateDir const model("{{ messages[0].content }}");
  ChatTemplates templates(read_chat_templates(model.path), options(std::chrono::seconds(20)));
  OrderedJson const good = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  ASSERT_EQ(templates.child_pids().size(), 1U);
  kill(templates.child_pids().front(), SIGKILL);
  (void)templates.render(good.dump());  // finds the child dead, or already its successor
  auto const result = templates.render(good.dump());
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result.value(), "hi");
}

}  // namespace
}  // namespace expertmesh
