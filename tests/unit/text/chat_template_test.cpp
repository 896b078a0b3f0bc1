#include "coordinator/text/chat_template.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <vector>

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // templates see keys in the order they were given

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

TEST(ChatTemplates, EveryGoldenCase) {
  fs::path const dir = fs::path(EM_GOLDENS_DIR) / "text/templates";
  Json const golden = Json::parse(read(dir / "golden.json"));
  TemplateDir const model("unused");
  ChatTemplates templates(model.path, options(std::chrono::seconds(20)));
  std::size_t rendered = 0;
  for (auto const& c : golden["cases"]) {
    Json request = {{"template", read(dir / (c["template"].get<std::string>() + ".jinja"))},
                    {"messages", c["messages"]},
                    {"tools", c["tools"]},
                    {"documents", c["documents"]},
                    {"add_generation_prompt", c["add_generation_prompt"]},
                    {"kwargs", c["kwargs"]},
                    {"now", golden["now"]}};
    auto const result = templates.render(request.dump());
    std::string const name = c["template"].get<std::string>() + "/" + c["conversation"].get<std::string>();
    if (c.contains("rendered")) {
      ASSERT_TRUE(result.ok()) << name << ": " << result.error().message;
      EXPECT_EQ(result.value(), c["rendered"].get<std::string>()) << name;
      ++rendered;
    } else {
      ASSERT_FALSE(result.ok()) << name << " must be refused";
      EXPECT_EQ(result.error().status, 400);
      if (c["error"] == "TemplateError") {
        EXPECT_NE(result.error().message.find(c["error_message"].get<std::string>()), std::string::npos) << name;
      }
    }
  }
  EXPECT_GT(rendered, 100U);
}

TEST(ChatTemplates, EndlessTemplateIsCutAndTheNextRenders) {
  TemplateDir const model("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
  ChatTemplates templates(model.path, options(std::chrono::milliseconds(700)));
  Json const endless = {{"template", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
                        {"messages", Json::array()}};
  EXPECT_FALSE(templates.render(endless.dump()).ok());
  Json const good = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  auto const result = templates.render(good.dump());
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result.value(), "<s>hi</s>");
}

TEST(ChatTemplates, AModelWithoutATemplateRefuses) {
  ChatTemplates templates(fs::path(EM_GOLDENS_DIR) / "text/stop_strings", options(std::chrono::seconds(20)));
  EXPECT_FALSE(templates.has_template());
  auto const result = templates.render(R"({"template": "x", "messages": []})");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().status, 400);
}

// More callers than children: each waits for its turn and gets its own answer.
TEST(ChatTemplates, RendersForSeveralThreadsAtOnce) {
  TemplateDir const model("{{ messages[0].content }}");
  auto two_children = options(std::chrono::seconds(20));
  two_children.processes = 2;
  ChatTemplates templates(model.path, two_children);
  std::array<std::string, 6> answers;
  std::vector<std::thread> callers;
  for (std::size_t i = 0; i < answers.size(); ++i)
    callers.emplace_back([&, i] {
      for (int round = 0; round < 10; ++round) {
        Json const request = {{"messages", {{{"role", "user"}, {"content", std::to_string(i)}}}}};
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
  ChatTemplates templates(model.path, options(std::chrono::seconds(20)));
  Json request = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  EXPECT_EQ(templates.render(request.dump()).value(), "plain hi");
  request["tools"] = {{{"type", "function"}}};
  EXPECT_EQ(templates.render(request.dump()).value(), "tools hi");
}

TEST(ChatTemplates, KilledChildIsReplaced) {
  TemplateDir const model("{{ messages[0].content }}");
  ChatTemplates templates(model.path, options(std::chrono::seconds(20)));
  Json const good = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  ASSERT_EQ(templates.child_pids().size(), 1U);
  kill(templates.child_pids().front(), SIGKILL);
  (void)templates.render(good.dump());  // finds the child dead, or already its successor
  auto const result = templates.render(good.dump());
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result.value(), "hi");
}

}  // namespace
}  // namespace expertmesh
