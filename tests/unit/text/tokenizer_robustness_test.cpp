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
  char const* pointer;  // JSON pointer; its value is replaced
  std::string value;    // JSON
  char const* named;
};

std::string split_by(std::string const& regex) {
  return R"({"type": "Split", "behavior": "Isolated", "pattern": {"Regex": )" + Json(regex).dump() + "}}";
}

std::string begin_token(std::string const& special_tokens) {
  return R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}],
             "special_tokens": )" +
         special_tokens + "}";
}

TEST(TokenizerFile, EveryFaultIsNamed) {
  std::vector<Fault> const faults = {
      {"/model", "null", "model"},
      {"/model/type", R"("WordPiece")", "WordPiece"},
      {"/model/type", R"("Unigram")", "vocab"},
      {"/model", R"({"type": "Unigram", "unk_id": 1, "vocab": [["a", 0.0]]})", "unk_id"},
      {"/model", R"({"type": "Unigram", "unk_id": null, "vocab": [["a", 0.0]]})", "unk_id"},
      {"/model", R"({"type": "Unigram", "unk_id": 0, "vocab": [["a", "0"]]})", "entry 0"},
      {"/model/type", "3", "type"},
      {"/model/vocab", "[]", "vocab"},
      {"/model/vocab/a", R"("1")", "vocab/a"},
      {"/model/vocab/a", "1.5", "vocab/a"},
      {"/model/vocab/a", "-4", "'a'"},
      {"/model/vocab/a", "1099511627776", "vocab/a"},
      {"/model/vocab/a", "1073741824", "token id"},
      {"/model/merges", "{}", "merges"},
      {"/model/merges/0", R"("ab")", "'ab'"},
      {"/model/merges/0", "5", "merge 0"},
      {"/model/merges/0", R"(["a", "no such token"])", "no such token"},
      {"/model/dropout", "0.1", "dropout"},
      {"/model/continuing_subword_prefix", R"("##")", "continuing_subword_prefix"},
      {"/model/end_of_word_suffix", R"("</w>")", "end_of_word_suffix"},
      {"/normalizer", R"({"type": "BertNormalizer"})", "BertNormalizer"},
      {"/normalizer", R"("NFC")", "normalizer"},
      {"/normalizer", R"({"type": "Sequence", "normalizers": 5})", "normalizer"},
      {"/normalizer", R"({"type": "Replace", "pattern": {}, "content": ""})", "Regex"},
      {"/normalizer", R"({"type": "Precompiled", "precompiled_charsmap": "A?"})", "base64"},
      {"/normalizer", R"({"type": "Precompiled", "precompiled_charsmap": "AAAA"})", "precompiled_charsmap"},
      {"/pre_tokenizer", R"({"type": "UnicodeScripts"})", "UnicodeScripts"},
      {"/pre_tokenizer", R"({"type": "FixedLength", "length": 0})", "length"},
      {"/pre_tokenizer", split_by("[a"), "[a"},
      {"/pre_tokenizer", split_by("(?>a)b"), "(?>a)b"},
      {"/pre_tokenizer", split_by("(a)\\1"), "\\1"},
      {"/pre_tokenizer", split_by("(a*)*"), "(a*)*"},
      {"/pre_tokenizer", split_by("(?<=a+)b"), "look-behind"},
      {"/pre_tokenizer", split_by("\\p{Klingon}"), "Klingon"},
      {"/pre_tokenizer", split_by(std::string(1000, '(')), "deep"},
      {"/pre_tokenizer", split_by("(abc|d){1000}{1000}"), "too large"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Odd"})", "Odd"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": ""}, "behavior": "Removed"})", "empty"},
      {"/pre_tokenizer", R"({"type": "Metaspace"})", "replacement"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "odd"})", "odd"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "add_prefix_space": false})", "add_prefix_space"},
      {"/decoder", R"({"type": "WordPiece"})", "WordPiece"},
      {"/decoder",
       R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": -1, "stop": 0}]})",
       "start"},
      {"/decoder",
       R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "", "start": 1, "stop": 0}]})",
       "Strip"},
      {"/decoder",
       R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                                            {"type": "ByteLevel"}]})",
       "ByteLevel"},
      {"/post_processor", R"({"type": "PairProcessing"})", "PairProcessing"},
      {"/post_processor", R"({"type": "BertProcessing", "cls": ["a", 1]})", "sep"},
      {"/post_processor", begin_token("{}"), "<x>"},
      {"/post_processor", begin_token(R"({"<x>": {"ids": [-7]}})"), "-7"},
      {"/post_processor", begin_token(R"({"<x>": {"ids": [999999]}})"), "999999"},
      {"/added_tokens", R"("x")", "added_tokens"},
      {"/added_tokens", R"([{"content": "x"}])", "'id'"},
      {"/added_tokens", R"([{"content": "x", "id": -1}])", "'x'"},
      {"/added_tokens", R"([{"content": "no such token", "id": 7}])", "'no such token' has id 7"},
      {"/added_tokens", R"([{"content": "x", "id": 7, "special": "yes"}])", "special"},
  };
  Json const sound = fixture_json("qwen");
  auto const spoilt_by = [&](char const* pointer, std::string const& value) {
    Json file = sound;
    file[Json::json_pointer(pointer)] = Json::parse(value);
    return file.dump();
  };
  ASSERT_NE(load(sound.dump()), nullptr);
  ASSERT_NE(load(spoilt_by("/pre_tokenizer", split_by("a"))), nullptr);
  ASSERT_NE(load(spoilt_by("/post_processor", begin_token(R"({"<x>": {"ids": [1]}})"))), nullptr);
  for (auto const& [pointer, value, named] : faults) {
    std::string const name = std::string(pointer) + " = " + value;
    try {
      (void)load(spoilt_by(pointer, value));
      ADD_FAILURE() << name << " was accepted";
    } catch (ModelError const& error) {
      std::string const what = error.what();
      EXPECT_TRUE(what.starts_with("tokenizer.json: ")) << name << ": " << what;
      EXPECT_NE(what.find(named), std::string::npos) << name << ": " << what;
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
  struct Case {
    char const* normalizer;  // JSON
    char const* text;
    Ids ids;
  };
  for (auto const& [normalizer, text, ids] : std::vector<Case>{
           {R"({"type": "Strip", "strip_left": true, "strip_right": true})", "  a", {1}},
           {R"({"type": "Strip", "strip_left": false, "strip_right": true})", "a ", {0, 1}},
           {R"({"type": "StripAccents"})", "\u0301a", {1}},
           {R"({"type": "StripAccents"})", "a\u0301", {0, 1}},
           {R"({"type": "Nmt"})",
            "\x01"
            "a",
            {1}},
           {R"({"type": "Replace", "pattern": {"String": "ab"}, "content": "X"})", "aba", {3, 1}},
           {R"({"type": "Replace", "pattern": {"String": "a"}, "content": ""})", "aab", {2}},
           {R"({"type": "Replace", "pattern": {"String": "a"}, "content": "X"})", "ab", {0, 3, 2}},
           {"{\"type\": \"Replace\", \"pattern\": {\"String\": \"\u00E9\"}, \"content\": \"e\"}",
            "\u00E9"
            "a",
            {0, 5, 1}},
           {R"({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "X"})", "aab", {3, 2}},
           {R"({"type": "Replace", "pattern": {"Regex": "^"}, "content": "X"})", "ab", {0, 3, 1, 2}},
           {R"({"type": "Replace", "pattern": {"Regex": "b*"}, "content": ""})", "ba", {1}},
           {R"({"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": true, "strip_right": true},
                                                    {"type": "Prepend", "prepend": "X"}]})",
            " a",
            {3, 1}}}) {
    Json file = Json::parse(
        "{\"model\": {\"type\": \"BPE\", \"merges\": [],"
        " \"vocab\": {\"\u2581\": 0, \"a\": 1, \"b\": 2, \"X\": 3, \"\u00E9\": 4, \"e\": 5}},"
        " \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\u2581\", \"prepend_scheme\": \"first\","
        " \"split\": false}}");
    file["normalizer"] = Json::parse(normalizer);
    EXPECT_EQ(load(file.dump())->encode(text, false), ids) << normalizer << " of '" << text << "'";
  }
}

// The two cuts of "aaa" have the same score but for the last bit, which the tokenizers library reads in its own way.
TEST(Unigram, EqualScoresAreToldApartAsInTheReference) {
  std::string const file = R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [
      ["<unk>", -20.0], ["a", -7.984389405774261], ["aa", -10.391292687906489], ["c", -8.16437370560691]]}})";
  EXPECT_EQ(load(file)->encode("caaa", false), (Ids{3, 1, 2}));
}

}  // namespace
}  // namespace expertmesh
