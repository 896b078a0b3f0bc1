// The command's lines: each line in has one out, whatever it holds.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/error.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/tokenize_command.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

std::filesystem::path const kFixture = test::goldens_dir() / "text/tokenizers/llama3";
TokenizeOptions const kDecode{.model_dir = {}, .decode = true};
TokenizeOptions const kStream{.model_dir = {}, .stream = true};

std::vector<Json> answers(TokenizeOptions options, std::string const& lines) {
  options.model_dir = kFixture;
  std::istringstream in(lines);
  std::ostringstream out;
  tokenize(options, in, out);
  std::vector<Json> found;
  std::istringstream read(out.str());
  for (std::string line; std::getline(read, line);) found.push_back(Json::parse(line));
  return found;
}

TEST(TokenizeCommand, EncodesDecodesAndStreamsLikeTheReference) {
  Json const golden = Json::parse(std::ifstream(kFixture / "golden.json"));
  std::string texts;
  std::string ids;
  for (auto const& c : golden["cases"]) {
    texts += Json{{"text", c["text"]}}.dump() + "\n" + Json{{"text", c["text"]}, {"add_special_tokens", false}}.dump() +
             "\n";
    ids +=
        Json{{"ids", c["ids"]}}.dump() + "\n" + Json{{"ids", c["ids"]}, {"skip_special_tokens", false}}.dump() + "\n";
  }
  auto const encoded = answers({}, texts);
  auto const decoded = answers(kDecode, ids);
  ASSERT_EQ(encoded.size(), 2 * golden["cases"].size());
  ASSERT_EQ(decoded.size(), 2 * golden["cases"].size());
  for (std::size_t i = 0; i < golden["cases"].size(); ++i) {
    auto const& c = golden["cases"][i];
    EXPECT_EQ(encoded[2 * i], (Json{{"ids", c["ids"]}}));
    EXPECT_EQ(encoded[2 * i + 1], (Json{{"ids", c["ids_plain"]}}));
    EXPECT_EQ(decoded[2 * i], (Json{{"text", c["decoded_skip"]}}));
    EXPECT_EQ(decoded[2 * i + 1], (Json{{"text", c["decoded"]}}));
  }
  for (auto const& s : golden["streams"]) {
    auto const line = Json{{"ids", s["ids"]}, {"skip_special_tokens", s["skip_special_tokens"]}}.dump() + "\n";
    EXPECT_EQ(answers(kStream, line), (std::vector<Json>{{{"pieces", s["pieces"]}, {"tail", s["tail"]}}}));
  }
}

// What is sent, and what the error must name; the line behind it is answered all the same.
TEST(TokenizeCommand, ABadLineIsAnsweredAndTheNextOneRead) {
  std::vector<std::pair<std::string, std::string>> const bad_texts = {
      {"", "parse"},
      {"[1]", "object"},
      {"{}", "'text'"},
      {R"({"text": 5})", "'text'"},
      {R"({"text": "a", "add_special_tokens": 1})", "'add_special_tokens'"},
      {R"({"text": "a", "add_special_token": true})", "'add_special_token'"},
      {"{\"text\": \"\xFF\"}", "UTF-8"},
  };
  std::size_t const vocab_size = Tokenizer::load(kFixture)->vocab_size();
  std::vector<std::pair<std::string, std::string>> const bad_ids = {
      {"{}", "'ids'"},
      {R"({"ids": 5})", "'ids'"},
      {R"({"ids": [1, "a"]})", "\"a\""},
      {R"({"ids": [1.5]})", "1.5"},
      {R"({"ids": [1099511627776]})", "1099511627776"},
      {R"({"ids": [1, -1]})", "-1"},
      {R"({"ids": [1, )" + std::to_string(vocab_size) + "]}", std::to_string(vocab_size)},
  };
  auto const check = [](TokenizeOptions const& options, auto const& lines, std::string const& good) {
    for (auto const& [line, named] : lines) {
      auto const replies = answers(options, line + "\n" + good + "\n");
      ASSERT_EQ(replies.size(), 2U) << line;
      ASSERT_EQ(replies[0].size(), 1U) << line;
      EXPECT_NE(replies[0]["error"].template get<std::string>().find(named), std::string::npos) << replies[0];
      EXPECT_FALSE(replies[1].contains("error")) << replies[1];
    }
  };
  check({}, bad_texts, R"({"text": "a"})");
  std::string const last = R"({"ids": [1, )" + std::to_string(vocab_size - 1) + "]}";
  check(kDecode, bad_ids, last);
  check(kStream, bad_ids, last);
}

TEST(TokenizeCommand, ADirectoryWithoutATokenizerIsNamed) {
  std::istringstream in;
  std::ostringstream out;
  EXPECT_THROW(tokenize({.model_dir = kFixture.parent_path()}, in, out), ModelError);
}

}  // namespace
}  // namespace expertmesh
