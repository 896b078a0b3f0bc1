// A tokenizer.model alone, against what SentencePiece itself gives.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

// A model directory of its own, with these files.
class ModelDir {
 public:
  explicit ModelDir(std::string const& model, std::string const& config = "") {
    fs::create_directories(path_);
    std::ofstream(path_ / "tokenizer.model", std::ios::binary) << model;
    if (!config.empty()) std::ofstream(path_ / "tokenizer_config.json") << config;
  }
  ~ModelDir() { fs::remove_all(path_); }
  [[nodiscard]] std::unique_ptr<Tokenizer> load() const { return Tokenizer::load(path_); }

 private:
  fs::path const path_ = fs::temp_directory_path() / ("em_sentencepiece_" + std::to_string(getpid()));
};

fs::path sentencepiece_fixture(std::string const& name) {
  return test::goldens_dir() / "text/sentencepiece" / name;
}

std::string file_of(std::string const& name) {
  std::ifstream in(sentencepiece_fixture(name) / "tokenizer.model", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class SentencePiece : public testing::TestWithParam<char const*> {};

TEST_P(SentencePiece, EncodesAndDecodesLikeTheReference) {
  auto const tokenizer = Tokenizer::load(sentencepiece_fixture(GetParam()));
  Json const golden = Json::parse(std::ifstream(sentencepiece_fixture(GetParam()) / "golden.json"));
  ASSERT_GT(golden.size(), 100U);
  std::size_t decoded = 0;
  for (auto const& c : golden) {
    auto const ids = c["ids"].get<Ids>();
    EXPECT_EQ(tokenizer->encode(c["text"].get<std::string>(), false), ids) << c["text"];
    if (c["decoded"].is_null()) continue;  // SentencePiece writes unknown pieces as " ⁇ "
    EXPECT_EQ(tokenizer->decode(ids, true), c["decoded"].get<std::string>());
    StreamDetokenizer stream(*tokenizer, true);
    std::string joined;
    for (TokenId id : ids) joined += stream.push(id);
    EXPECT_EQ(joined + stream.finish(), c["decoded"].get<std::string>());
    ++decoded;
  }
  EXPECT_GT(decoded, 50U);
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePiece, testing::Values("bpe", "unigram"),
                         [](auto const& name) { return std::string(name.param); });

TEST(SentencePieceConfig, SaysWhatGoesAroundAText) {
  auto const around = [](std::string const& model, std::string const& config) {
    return ModelDir(file_of(model), config).load()->encode("", true);
  };
  constexpr TokenId kBos = 1;
  constexpr TokenId kEos = 2;
  EXPECT_EQ(around("bpe", ""), Ids({kBos}));
  EXPECT_EQ(around("unigram", ""), Ids({kEos}));
  std::string const names = R"("bos_token": "<s>", "eos_token": {"content": "</s>"})";
  EXPECT_EQ(around("bpe", R"({"add_eos_token": true, "add_bos_token": true, )" + names + "}"), Ids({kBos, kEos}));
  EXPECT_EQ(around("bpe", R"({"add_bos_token": false, )" + names + "}"), Ids());
  EXPECT_THROW((void)around("bpe", R"({"add_bos_token": 1})"), ModelError);
  EXPECT_THROW((void)around("bpe", R"({"add_bos_token": true, "bos_token": "<nowhere>"})"), ModelError);
}

// Control pieces in a text are tokens; only with "legacy" each part between them gets a mark before it.
TEST(SentencePieceConfig, LegacyMarksEveryPart) {
  auto const text = [](std::string const& config) {
    auto const tokenizer = ModelDir(file_of("bpe"), config).load();
    std::string tokens;
    for (TokenId id : tokenizer->encode("a</s>b", false)) tokens += "[" + tokenizer->decode(Ids{3, id}, false) + "]";
    return tokens;
  };
  std::string const zero = ModelDir(file_of("bpe")).load()->decode(Ids{3}, false);
  EXPECT_NE(text("{}"), text(R"({"legacy": true})"));
  EXPECT_EQ(text("{}"), text(R"({"legacy": false})"));
  EXPECT_NE(text("{}").find(zero + "</s>]"), std::string::npos) << text("{}");
}

TEST(SentencePieceFile, WhatIsMalformedIsRefused) {
  std::string const sound = file_of("bpe");
  ASSERT_NE(ModelDir(sound).load(), nullptr);
  for (std::string const& content : {std::string(), std::string("\xFF\xFF"), sound.substr(0, sound.size() / 2 + 1),
                                     std::string("\x0A\x05\x0A\x03"
                                                 "abc"),
                                     "\x0A\x03\x0A\x01\xFF" + sound})
    try {
      (void)ModelDir(content).load();
      ADD_FAILURE() << "accepted: " << Json(content.substr(0, 20)).dump(-1, ' ', true, Json::error_handler_t::replace);
    } catch (ModelError const& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with("tokenizer.model: ")) << error.what();
    }
}

}  // namespace
}  // namespace expertmesh
