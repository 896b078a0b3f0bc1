// What no fixture shows: malformed tokenizer files, very long words, text and ids that make no sense.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "common/base/error.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "tests/support/few_cases.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

fs::path fixture(std::string const& kind) {
  return test::goldens_dir() / "text/tokenizers" / kind;
}

Json fixture_json(std::string const& kind) {
  return Json::parse(std::ifstream(fixture(kind) / "tokenizer.json"));
}

// A model directory that holds this tokenizer.json and nothing else.
class TokenizerDir {
 public:
  explicit TokenizerDir(std::string const& content) {
    fs::create_directories(path_);
    std::ofstream(path_ / "tokenizer.json", std::ios::binary) << content;
  }
  ~TokenizerDir() { fs::remove_all(path_); }
  [[nodiscard]] fs::path const& path() const { return path_; }

 private:
  fs::path const path_ = fs::temp_directory_path() / ("em_tokenizer_" + std::to_string(getpid()));
};

std::unique_ptr<Tokenizer> load(std::string const& content) {
  return Tokenizer::load(TokenizerDir(content).path());
}

TEST(TokenizerFile, NoneIsNoError) {
  EXPECT_EQ(Tokenizer::load(test::goldens_dir() / "text/stop_strings"), nullptr);
}

// How a sound file is spoilt, and what the message must name.
struct Fault {
  std::string pointer;  // JSON pointer; its value is replaced
  Json value;
  std::string named;
};

TEST(TokenizerFile, EveryFaultIsNamed) {
  Json const split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}};
  auto const with = [](Json object, char const* pointer, Json value) {
    object[Json::json_pointer(pointer)] = std::move(value);
    return object;
  };
  auto const steps = [](char const* list, Json items) { return Json{{"type", "Sequence"}, {list, std::move(items)}}; };
  Json const begin_token = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<x>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                            {"special_tokens", {{"<x>", {{"ids", {1}}}}}}};
  Json const fuse = {{"type", "Fuse"}};
  Json const strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  std::vector<Fault> const faults = {
      {"/model", nullptr, "model"},
      {"/model/type", "WordPiece", "WordPiece"},
      {"/model/type", "Unigram", "vocab"},
      {"/model", {{"type", "Unigram"}, {"unk_id", 1}, {"vocab", Json::array({Json::array({"a", 0.0})})}}, "unk_id"},
      {"/model",
       {{"type", "Unigram"}, {"unk_id", nullptr}, {"vocab", Json::array({Json::array({"a", 0.0})})}},
       "unk_id"},
      {"/model", {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", Json::array({Json::array({"a", "0"})})}}, "entry 0"},
      {"/model/type", 3, "type"},
      {"/model/vocab", Json::array(), "vocab"},
      {"/model/vocab/a", "1", "vocab/a"},
      {"/model/vocab/a", 1.5, "vocab/a"},
      {"/model/vocab/a", -4, "'a'"},
      {"/model/vocab/a", std::int64_t{1} << 40, "vocab/a"},
      {"/model/vocab/a", 1 << 30, "token id"},
      {"/model/merges", Json::object(), "merges"},
      {"/model/merges/0", "ab", "'ab'"},
      {"/model/merges/0", 5, "merge 0"},
      {"/model/merges/0", {"a", "no such token"}, "no such token"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/normalizer", {{"type", "BertNormalizer"}}, "BertNormalizer"},
      {"/normalizer", "NFC", "normalizer"},
      {"/normalizer", steps("normalizers", 5), "normalizer"},
      {"/normalizer", {{"type", "Replace"}, {"pattern", Json::object()}, {"content", ""}}, "Regex"},
      {"/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "A?"}}, "base64"},
      {"/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}}, "precompiled_charsmap"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "UnicodeScripts"},
      {"/pre_tokenizer", {{"type", "FixedLength"}, {"length", 0}}, "length"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "[a"), "[a"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "(?>a)b"), "(?>a)b"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "(a)\\1"), "\\1"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "(a*)*"), "(a*)*"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "(?<=a+)b"), "look-behind"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "\\p{Klingon}"), "Klingon"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", std::string(1000, '(')), "deep"},
      {"/pre_tokenizer", with(split, "/pattern/Regex", "(abc|d){1000}{1000}"), "too large"},
      {"/pre_tokenizer", with(split, "/behavior", "Odd"), "Odd"},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", ""}}}, {"behavior", "Removed"}}, "empty"},
      {"/pre_tokenizer", {{"type", "Metaspace"}}, "replacement"},
      {"/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "odd"}}, "odd"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}},
       "add_prefix_space"},
      {"/decoder", {{"type", "WordPiece"}}, "WordPiece"},
      {"/decoder", steps("decoders", {fuse, with(strip, "/start", -1)}), "start"},
      {"/decoder", steps("decoders", {fuse, with(strip, "/content", "")}), "Strip"},
      {"/decoder", steps("decoders", {fuse, strip, {{"type", "ByteLevel"}}}), "ByteLevel"},
      {"/post_processor", {{"type", "PairProcessing"}}, "PairProcessing"},
      {"/post_processor", {{"type", "BertProcessing"}, {"cls", {"a", 1}}}, "sep"},
      {"/post_processor", with(begin_token, "/special_tokens", Json::object()), "<x>"},
      {"/post_processor", with(begin_token, "/special_tokens/<x>/ids/0", -7), "-7"},
      {"/post_processor", with(begin_token, "/special_tokens/<x>/ids/0", 999999), "999999"},
      {"/added_tokens", "x", "added_tokens"},
      {"/added_tokens", Json::array({{{"content", "x"}}}), "'id'"},
      {"/added_tokens", Json::array({{{"content", "x"}, {"id", -1}}}), "'x'"},
      {"/added_tokens", Json::array({{{"content", "no such token"}, {"id", 7}}}), "'no such token' has id 7"},
      {"/added_tokens", Json::array({{{"content", "x"}, {"id", 7}, {"special", "yes"}}}), "special"},
  };
  Json const sound = fixture_json("qwen");
  ASSERT_NE(load(sound.dump()), nullptr);
  ASSERT_NE(load(with(sound, "/post_processor", begin_token).dump()), nullptr);
  for (auto const& fault : faults) {
    std::string const spoilt = with(sound, fault.pointer.c_str(), fault.value).dump();
    std::string const name = fault.pointer + " = " + fault.value.dump();
    try {
      (void)load(spoilt);
      ADD_FAILURE() << name << " was accepted";
    } catch (ModelError const& error) {
      std::string const what = error.what();
      EXPECT_TRUE(what.starts_with("tokenizer.json: ")) << name << ": " << what;
      EXPECT_NE(what.find(fault.named), std::string::npos) << name << ": " << what;
    }
  }
}

TEST(TokenizerFile, WhatIsNoJsonObjectIsRefused) {
  std::string const sound = fixture_json("qwen").dump();
  std::string nested;
  std::string ends;
  for (int i = 0; i < 100000; ++i) {
    nested += R"({"type":"Sequence","normalizers":[)";
    ends += "]}";
  }
  for (std::string const& content :
       {std::string(), std::string("null"), std::string("[]"), sound.substr(0, sound.size() / 2),
        std::string("{\"model\":\"\xFF\"}"), R"({"normalizer":)" + nested + ends + "}"})
    EXPECT_THROW((void)load(content), ModelError) << content.substr(0, 60);
}

// One word of a megabyte: quadratic merging would take hours, and the time limit of the test ends it.
TEST(TokenizerLimits, ALongTextWithoutABreak) {
  for (char const* kind : {"mixtral-legacy", "mixtral-metaspace", "gemma", "llama3", "olmoe", "deepseek-v2", "kimi",
                           "switch-t5", "nllb", "unigram-bytes"}) {
    auto const tokenizer = Tokenizer::load(fixture(kind));
    std::string text(test::kLongText, 'a');
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text) << kind;
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + (i * i * 7 + i / 3) % 26);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text) << kind;
  }
}

TEST(TokenizerLimits, LongWhiteSpaceAndBrokenBytes) {
  std::size_t const size = test::kLongText;
  // The library's own ordering of combining marks, and \s+$ on spaces, would take hours.
  std::string marks;
  while (marks.size() < size) marks += "\u0301\u0323";
  EXPECT_FALSE(Tokenizer::load(fixture("qwen"))->encode(marks, false).empty());
  std::string const spaces = std::string(size, ' ') + "a";
  auto const splits_lines = Tokenizer::load(fixture("deepseek-v2"));
  EXPECT_EQ(splits_lines->decode(splits_lines->encode(spaces, false), false), spaces);
  auto const tokenizer = Tokenizer::load(fixture("llama3"));
  for (std::string const& text : {std::string(size, ' '), std::string(size, '\n'), std::string(size, ' ') + "a"})
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text);
  std::string const broken(size, '\xFF');
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(broken, false), false).size(), size * kReplacement.size());
}

class TokenizerNoise : public testing::TestWithParam<std::string> {};

// Byte-level text comes back as it was, but for NFC and for what is no UTF-8; nothing crashes.
TEST_P(TokenizerNoise, RandomBytesAreReadAsRepairedText) {
  auto const tokenizer = Tokenizer::load(fixture(GetParam()));
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& b : bytes) b = static_cast<char>(random());
    EXPECT_EQ(tokenizer->encode(bytes, true), tokenizer->encode(repaired_utf8(bytes), true));
    std::string const text = tokenizer->decode(tokenizer->encode(bytes, false), false);
    EXPECT_EQ(repaired_utf8(text), text);
    if (GetParam() == "llama3") {
      EXPECT_EQ(text, repaired_utf8(bytes));
    }
  }
}

// Any ids: valid UTF-8, streamed and whole; alike where there are no byte tokens, whose malformed runs may differ.
TEST_P(TokenizerNoise, RandomIdsDecodeToValidText) {
  auto const tokenizer = Tokenizer::load(fixture(GetParam()));
  bool const byte_level = fixture_json(GetParam())["decoder"]["type"] == "ByteLevel";
  std::mt19937 random(11);
  auto const past_the_end = static_cast<std::uint32_t>(tokenizer->vocab_size() + 10);
  for (int round = 0; round < 300; ++round) {
    Ids ids(random() % 20);
    for (TokenId& id : ids) id = static_cast<TokenId>(random() % past_the_end) - 5;
    for (bool skip : {false, true}) {
      StreamDetokenizer stream(*tokenizer, skip);
      std::string joined;
      for (TokenId id : ids) {
        std::string const piece = stream.push(id);
        EXPECT_EQ(repaired_utf8(piece), piece);
        joined += piece;
      }
      joined += stream.finish();
      std::string const whole = tokenizer->decode(ids, skip);
      EXPECT_EQ(repaired_utf8(whole), whole);
      if (byte_level) {
        EXPECT_EQ(joined, whole) << Json(ids);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerNoise,
                         testing::Values("llama3", "qwen", "mixtral-legacy", "mixtral-metaspace", "added-flags",
                                         "deepseek-v2", "kimi", "gemma", "nllb", "unigram-bytes"),
                         [](auto const& kind) {
                           std::string name = kind.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(Tokenizer, IdsOutsideTheVocabularyAreNothing) {
  auto const tokenizer = Tokenizer::load(fixture("qwen"));
  auto const size = static_cast<TokenId>(tokenizer->vocab_size());
  for (TokenId id : {-1, size, std::numeric_limits<TokenId>::max(), std::numeric_limits<TokenId>::min()}) {
    EXPECT_EQ(tokenizer->decode(Ids{id}, false), "");
    EXPECT_EQ(tokenizer->token_text(id), "");
    EXPECT_EQ(tokenizer->token_bytes(id), "");
  }
}

TEST(Tokenizer, ShowsAPartOfACharacterAsReplacement) {
  auto const tokenizer = Tokenizer::load(fixture("llama3"));
  std::string bytes;
  auto const ids = tokenizer->encode("\U0001F469", false);
  ASSERT_GT(ids.size(), 1U) << "the fixture's vocabulary has the character as one token";
  for (TokenId id : ids) {
    bytes += tokenizer->token_bytes(id);
    EXPECT_NE(tokenizer->token_text(id).find(kReplacement), std::string::npos);
  }
  EXPECT_EQ(bytes, "\U0001F469");
}

// A single_word token's neighbours are what Unicode Technical Standard 18 calls word characters.
TEST(AddedTokens, SingleWordAsksForNoWordCharacterBesideIt) {
  auto const tokenizer = Tokenizer::load(fixture("added-flags"));  // WORD is a single_word token
  Json const file = fixture_json("added-flags");
  TokenId word = -1;
  for (auto const& token : file["added_tokens"])
    if (token["content"] == "WORD") word = token["id"];
  auto const found = [&](std::string const& text) {
    auto const ids = tokenizer->encode(text, false);
    return std::ranges::find(ids, word) != ids.end();
  };
  for (char const* beside : {"(", " ", "\u00B2", "\u00BD", "\U0001F1EB", "\uFFFD"}) {
    EXPECT_TRUE(found(beside + std::string("WORD"))) << beside;
    EXPECT_TRUE(found(std::string("WORD") + beside)) << beside;
  }
  for (char const* beside : {"a", "1", "_", "\u2160", "\u200D", "\u24D0", "\U0001F150", "\u0301", "\u203F", "\u4E2D"}) {
    EXPECT_FALSE(found(beside + std::string("WORD"))) << beside;
    EXPECT_FALSE(found(std::string("WORD") + beside)) << beside;
  }
}

// Ids that tokenizers 0.23.3 gives.
TEST(Metaspace, FirstMarksTheTextsOwnFirstCharacterOnly) {
  auto const replace = [](char const* kind, char const* what, char const* with) {
    return Json{{"type", "Replace"}, {"pattern", {{kind, what}}}, {"content", with}};
  };
  auto const strip = [](bool left) { return Json{{"type", "Strip"}, {"strip_left", left}, {"strip_right", true}}; };
  Json const prepend = {{"type", "Prepend"}, {"prepend", "X"}};
  struct Case {
    Json normalizer;
    std::string text;
    Ids ids;
  };
  for (auto const& [normalizer, text, ids] :
       std::vector<Case>{{strip(true), "  a", {1}},
                         {strip(false), "a ", {0, 1}},
                         {{{"type", "StripAccents"}}, "\u0301a", {1}},
                         {{{"type", "StripAccents"}}, "a\u0301", {0, 1}},
                         {{{"type", "Nmt"}},
                          "\x01"
                          "a",
                          {1}},
                         {replace("String", "ab", "X"), "aba", {3, 1}},
                         {replace("String", "a", ""), "aab", {2}},
                         {replace("String", "a", "X"), "ab", {0, 3, 2}},
                         {replace("String", "\u00E9", "e"),
                          "\u00E9"
                          "a",
                          {0, 5, 1}},
                         {replace("Regex", "a+", "X"), "aab", {3, 2}},
                         {replace("Regex", "^", "X"), "ab", {0, 3, 1, 2}},
                         {replace("Regex", "b*", ""), "ba", {1}},
                         {{{"type", "Sequence"}, {"normalizers", {strip(true), prepend}}}, " a", {3, 1}}}) {
    Json const model = {{"type", "BPE"},
                        {"vocab", {{"\u2581", 0}, {"a", 1}, {"b", 2}, {"X", 3}, {"\u00E9", 4}, {"e", 5}}},
                        {"merges", Json::array()}};
    Json const first = {
        {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}, {"split", false}};
    Json const file = {{"normalizer", normalizer}, {"pre_tokenizer", first}, {"model", model}};
    EXPECT_EQ(load(file.dump())->encode(text, false), ids) << normalizer << " of '" << text << "'";
  }
}

// The two cuts of "aaa" have the same score but for the last bit, which the tokenizers library reads in its own way.
TEST(Unigram, EqualScoresAreToldApartAsInTheReference) {
  Json const file = {
      {"model",
       {{"type", "Unigram"},
        {"unk_id", 0},
        {"vocab", Json::array({Json::array({"<unk>", -20.0}), Json::array({"a", -7.984389405774261}),
                               Json::array({"aa", -10.391292687906489}), Json::array({"c", -8.16437370560691})})}}}};
  EXPECT_EQ(load(file.dump())->encode("caaa", false), (Ids{3, 1, 2}));
}

}  // namespace
}  // namespace expertmesh
