// Every tokenizer fixture against what the reference library gives: ids, decodes, streamed pieces.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  fs::path const dir = test::goldens_dir() / "text/tokenizers" / GetParam();
  std::unique_ptr<Tokenizer> const tokenizer = Tokenizer::load(dir);
  Json const golden = Json::parse(std::ifstream(dir / "golden.json"));
};

TEST_P(TokenizerGolden, EncodesLikeTheReference) {
  ASSERT_GT(golden["cases"].size(), 20U);
  for (auto const& c : golden["cases"]) {
    auto const text = c["text"].get<std::string>();
    EXPECT_EQ(tokenizer->encode(text, true), c["ids"].get<Ids>()) << Json(text);
    EXPECT_EQ(tokenizer->encode(text, false), c["ids_plain"].get<Ids>()) << Json(text);
  }
}

TEST_P(TokenizerGolden, DecodesLikeTheReference) {
  for (auto const& c : golden["cases"]) {
    auto const ids = c["ids"].get<Ids>();
    EXPECT_EQ(tokenizer->decode(ids, false), c["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer->decode(ids, true), c["decoded_skip"].get<std::string>());
  }
}

TEST_P(TokenizerGolden, StreamsLikeTheReference) {
  std::size_t compared = 0;
  for (auto const& s : golden["streams"]) {
    auto const ids = s["ids"].get<Ids>();
    bool const skip = s["skip_special_tokens"];
    EXPECT_EQ(tokenizer->decode(ids, skip), s["full"].get<std::string>());
    if (s["pieces"].is_null()) continue;
    StreamDetokenizer stream(*tokenizer, skip);
    for (std::size_t i = 0; i < ids.size(); ++i)
      EXPECT_EQ(stream.push(ids[i]), s["pieces"][i].get<std::string>()) << "id " << i << " of " << s["ids"];
    EXPECT_EQ(stream.finish(), s["tail"].get<std::string>());
    ++compared;
  }
  EXPECT_GT(compared, 5U);
}

TEST_P(TokenizerGolden, KnowsItsVocabularySize) {
  EXPECT_EQ(tokenizer->vocab_size(), golden["vocab_size"].get<std::size_t>());
}

std::vector<std::string> kinds() {
  std::vector<std::string> names;
  for (auto const& entry : fs::directory_iterator(test::goldens_dir() / "text/tokenizers"))
    names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerGolden, testing::ValuesIn(kinds()), [](auto const& kind) {
  std::string name = kind.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace expertmesh
