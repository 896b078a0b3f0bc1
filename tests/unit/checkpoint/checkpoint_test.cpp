// The goldens' checkpoints load byte for byte; every damage to one is refused by file and tensor.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cstring>

#include "common/checkpoint/mapped_file.h"
#include "common/checkpoint/weight_source.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::expect_words;
using test::ModelCopy;
using test::read_file;
using test::refusal;
using test::safetensors_bytes;
using test::ScratchDir;
using test::write_file;

char const* const kSingle = "model.safetensors";
char const* const kIndex = "model.safetensors.index.json";
char const* const kShard2 = "model-00002-of-00003.safetensors";
char const* const kNorm = "model.norm.weight";

std::string bytes_of(StoredTensor const& tensor) {
  return {reinterpret_cast<char const*>(tensor.bytes.data()), tensor.bytes.size()};
}

class Golden : public testing::TestWithParam<char const*> {};

TEST_P(Golden, LoadsEveryTensorByteForByte) {
  auto const dir = ModelCopy::source(GetParam());
  auto const source = open_checkpoint(dir);
  std::vector<TensorInfo> all;
  for (auto const& file : checkpoint_files(dir)) {
    std::string const bytes = read_file(file);
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
    auto const header = json::parse(bytes.substr(8, header_bytes));
    for (auto const& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      auto const shape = entry.at("shape").get<std::vector<std::size_t>>();
      StoredTensor const tensor = source->load(name, shape);
      std::size_t const begin = entry.at("data_offsets")[0];
      std::size_t const end = entry.at("data_offsets")[1];
      EXPECT_EQ(bytes_of(tensor), bytes.substr(8 + header_bytes + begin, end - begin)) << name;
      EXPECT_EQ(tensor.shape, shape);
      EXPECT_EQ(safetensors_name_of(tensor.dtype), entry.at("dtype").get<std::string>());
      all.push_back({name, shape});
    }
  }
  EXPECT_GT(all.size(), 20U);
  source->verify({.required = all, .optional = {}, .skipped_prefixes = {}});
}
INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         testing::Values("llama", "mixtral", "mixtral-window", "noisy_topk_moe", "qwen3_moe"));

TEST(Checkpoint, ReadsNumbersOfEachType) {
  ScratchDir const dir;
  std::string const header = R"({"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},
    "c":{"dtype":"F16","shape":[2,1],"data_offsets":[12,16]}, "d":{"dtype":"I64","shape":[1],"data_offsets":[16,24]},
    "e":{"dtype":"F32","shape":[0,7],"data_offsets":[24,24]}})";
  std::array<float, 2> const a = {1.5F, -2.25F};
  std::string data(reinterpret_cast<char const*>(a.data()), 8);
  data += std::string("\xc0\x3f\x10\xc0", 4);  // bf16 1.5, -2.25
  data += std::string("\x00\x3e\x80\xc0", 4);  // fp16 1.5, -2.25
  data += std::string(8, '\0');
  write_file(dir.path() / kSingle, safetensors_bytes(header, data));
  auto const source = open_checkpoint(dir.path());
  std::vector<float> const expected = {1.5F, -2.25F};
  EXPECT_EQ(to_floats(source->load("a", std::array<std::size_t, 1>{2})), expected);
  EXPECT_EQ(to_floats(source->load("b", std::array<std::size_t, 2>{1, 2})), expected);
  EXPECT_EQ(to_floats(source->load("c", std::array<std::size_t, 2>{2, 1})), expected);
  EXPECT_TRUE(source->load("e", std::array<std::size_t, 2>{0, 7}).bytes.empty());
  expect_words(refusal([&] { (void)source->load("d", std::array<std::size_t, 1>{1}); }),
               {kSingle, "'d'", "I64", "expected F32, BF16 or F16"});
  expect_words(refusal([&] {
                 (void)source->load("a", std::array<std::size_t, 2>{2, 1});
               }),
               {kSingle, "'a'", "[2]", "[2,1]"});
  expect_words(refusal([&] { (void)source->load("z", std::array<std::size_t, 1>{1}); }), {kSingle, "'z'", "missing"});
}

TEST(Checkpoint, VerifyNamesWhatIsMissingUnexpectedOrMisshapen) {
  auto const sharded = open_checkpoint(ModelCopy::source("mixtral-window"));
  TensorInfo const norm{kNorm, {64}};
  auto const message = [&](ExpectedTensors const& expected) { return refusal([&] { sharded->verify(expected); }); };
  expect_words(message({.required = {norm}, .optional = {}, .skipped_prefixes = {}}),
               {"unexpected tensor", "'lm_head.weight'"});
  expect_words(message({.required = {norm}, .optional = {}, .skipped_prefixes = {"lm_head"}}),
               {"unexpected tensor", "'model.embed_tokens.weight'"});
  expect_words(message({.required = {norm, {"nowhere", {1}}}, .optional = {}, .skipped_prefixes = {}}),
               {kIndex, "'nowhere'", "missing"});
  expect_words(message({.required = {{kNorm, {65}}}, .optional = {}, .skipped_prefixes = {}}), {kNorm, "[64]", "[65]"});
  expect_words(message({.required = {}, .optional = {{kNorm, {65}}}, .skipped_prefixes = {}}), {kNorm, "[64]", "[65]"});
  EXPECT_NO_THROW(sharded->verify({.required = {norm}, .optional = {}, .skipped_prefixes = {"lm_head", "model."}}));
}

TEST(Checkpoint, ListsItsFiles) {
  EXPECT_EQ(checkpoint_files(ModelCopy::source("mixtral-window")).size(), 3U);
  EXPECT_EQ(checkpoint_files(ModelCopy::source("mixtral")).size(), 1U);
  EXPECT_TRUE(checkpoint_files(ScratchDir().path()).empty());
}

// ---- a damaged single file
struct HeaderCase {
  char const* name;
  void (*edit)(json& header, std::string& data);
  std::vector<std::string> words;
};
void PrintTo(HeaderCase const& c, std::ostream* out) {
  *out << c.name;
}
class BadHeader : public testing::TestWithParam<HeaderCase> {};

TEST_P(BadHeader, IsRefused) {
  ModelCopy const copy("mixtral");
  copy.edit_tensors(kSingle, GetParam().edit);
  std::string const message = refusal([&] { (void)open_checkpoint(copy.path()); });
  expect_words(message, {kSingle});
  expect_words(message, GetParam().words);
}

json& norm(json& header) {
  return header[kNorm];
}
void shift(json& entry, int begin, int end) {
  entry["data_offsets"] = {entry["data_offsets"][0].get<int>() + begin, entry["data_offsets"][1].get<int>() + end};
}
INSTANTIATE_TEST_SUITE_P(
    Checkpoint, BadHeader,
    testing::Values(
        HeaderCase{"truncated", [](json&, std::string& data) { data.resize(data.size() - 1000); }, {"truncated"}},
        HeaderCase{"trailing", [](json&, std::string& data) { data += "xy"; }, {"2 bytes after the last tensor"}},
        HeaderCase{"overlap", [](json& h, std::string&) { shift(norm(h), -4, -4); }, {"overlaps"}},
        HeaderCase{"removed", [](json& h, std::string&) { h.erase(kNorm); }, {"belong to no tensor"}},
        HeaderCase{"smaller", [](json& h, std::string&) { shift(norm(h), 0, -2); }, {kNorm, "needs 128", "holds 126"}},
        HeaderCase{"backwards",
                   [](json& h, std::string&) {
                     norm(h)["data_offsets"] = {9, 5};
                   },
                   {kNorm, "before it"}},
        HeaderCase{"beyond",
                   [](json& h, std::string&) {
                     norm(h)["data_offsets"] = {1ULL << 62, (1ULL << 62) + 128};
                   },
                   {kNorm, "truncated"}},
        HeaderCase{"negative",
                   [](json& h, std::string&) {
                     norm(h)["data_offsets"] = {-128, 0};
                   },
                   {kNorm, "offset"}},
        HeaderCase{"fraction",
                   [](json& h, std::string&) {
                     norm(h)["data_offsets"] = {0.5, 8};
                   },
                   {kNorm, "offset"}},
        HeaderCase{"triple",
                   [](json& h, std::string&) {
                     norm(h)["data_offsets"] = {1, 2, 3};
                   },
                   {kNorm, "pair"}},
        HeaderCase{"dtype", [](json& h, std::string&) { norm(h)["dtype"] = "Q7"; }, {kNorm, "unknown dtype", "Q7"}},
        HeaderCase{"no_dtype", [](json& h, std::string&) { norm(h).erase("dtype"); }, {kNorm, "no 'dtype'"}},
        HeaderCase{"number_dtype", [](json& h, std::string&) { norm(h)["dtype"] = 7; }, {kNorm, "unknown dtype"}},
        HeaderCase{"shape", [](json& h, std::string&) { norm(h)["shape"] = {32}; }, {kNorm, "needs 64", "holds 128"}},
        HeaderCase{"shape_text", [](json& h, std::string&) { norm(h)["shape"] = "64"; }, {kNorm, "not a list"}},
        HeaderCase{"dimension", [](json& h, std::string&) { norm(h)["shape"] = {-64}; }, {kNorm, "dimension"}},
        HeaderCase{"overflow",
                   [](json& h, std::string&) {
                     norm(h)["shape"] = {1ULL << 32, 1ULL << 32};
                   },
                   {kNorm, "too large"}},
        HeaderCase{"no_object", [](json& h, std::string&) { norm(h) = 3; }, {kNorm, "not an object"}},
        HeaderCase{"array",
                   [](json& h, std::string&) {
                     h = json::array({1, 2});
                   },
                   {"header", "not a JSON object"}},
        HeaderCase{"name", [](json& h, std::string&) { h["two\nlines"] = 3; }, {"'two?lines'", "not an object"}},
        HeaderCase{"long_name", [](json& h, std::string&) { h[std::string(5000, 'x')] = 3; }, {"xxx…'"}}),
    [](auto const& test_case) { return std::string(test_case.param.name); });

// ---- damaged bytes
struct BytesCase {
  char const* name;
  std::string (*edit)(std::string bytes);
  std::vector<std::string> words;
};
void PrintTo(BytesCase const& c, std::ostream* out) {
  *out << c.name;
}
class BadBytes : public testing::TestWithParam<BytesCase> {};

TEST_P(BadBytes, AreRefused) {
  ModelCopy const copy("mixtral");
  write_file(copy.path() / kSingle, GetParam().edit(read_file(copy.path() / kSingle)));
  std::string const message = refusal([&] { (void)open_checkpoint(copy.path()); });
  expect_words(message, {kSingle});
  expect_words(message, GetParam().words);
}
std::string with_header(std::string const& header) {
  return safetensors_bytes(header, "");
}
INSTANTIATE_TEST_SUITE_P(
    Checkpoint, BadBytes,
    testing::Values(
        BytesCase{"empty", [](std::string) { return std::string(); }, {"truncated"}},
        BytesCase{"seven", [](std::string b) { return b.substr(0, 7); }, {"truncated"}},
        BytesCase{"length_only", [](std::string b) { return b.substr(0, 8); }, {"truncated"}},
        BytesCase{"half_header", [](std::string b) { return b.substr(0, 100); }, {"header", "truncated"}},
        BytesCase{"oversized", [](std::string b) { return b.replace(7, 1, "\x40"); }, {"header", "oversized"}},
        BytesCase{"no_header", [](std::string) { return with_header(""); }, {"header", "not valid JSON"}},
        BytesCase{"garbage", [](std::string) { return with_header("{\"a\": \xff\xfe"); }, {"header", "not valid JSON"}},
        BytesCase{"deep", [](std::string) { return with_header("{\"a\":" + std::string(100000, '[')); }, {"nests"}},
        BytesCase{"twice",
                  [](std::string) {
                    std::string const entry = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
                    return with_header("{" + entry + "," + entry + "}");
                  },
                  {"'a'", "twice"}}),
    [](auto const& test_case) { return std::string(test_case.param.name); });

// ---- a damaged set of shards
struct ShardCase {
  char const* name;
  void (*edit)(ModelCopy const& copy);
  std::vector<std::string> words;
};
void PrintTo(ShardCase const& c, std::ostream* out) {
  *out << c.name;
}
class BadShards : public testing::TestWithParam<ShardCase> {};

TEST_P(BadShards, AreRefused) {
  ModelCopy const copy("mixtral-window");
  GetParam().edit(copy);
  expect_words(refusal([&] { (void)open_checkpoint(copy.path()); }), GetParam().words);
}
void edit_map(ModelCopy const& copy, void (*edit)(json& weight_map)) {
  copy.edit_json(kIndex, [&](json& index) { edit(index["weight_map"]); });
}
INSTANTIATE_TEST_SUITE_P(
    Checkpoint, BadShards,
    testing::Values(
        ShardCase{"missing",
                  [](ModelCopy const& c) { std::filesystem::remove(c.path() / kShard2); },
                  {kShard2, "missing shard", kIndex}},
        ShardCase{"truncated",
                  [](ModelCopy const& c) { std::filesystem::resize_file(c.path() / kShard2, 20000); },
                  {kShard2, "truncated"}},
        ShardCase{"index_names_more",
                  [](ModelCopy const& c) { edit_map(c, [](json& m) { m["extra.weight"] = kShard2; }); },
                  {kShard2, "'extra.weight'", "missing"}},
        ShardCase{"shard_holds_more",
                  [](ModelCopy const& c) { edit_map(c, [](json& m) { m.erase("model.norm.weight"); }); },
                  {"'model.norm.weight'", "unexpected", kIndex}},
        ShardCase{
            "tensor_in_two_shards",
            [](ModelCopy const& c) {
              c.edit_tensors(kShard2, [](json& header, std::string& data) {
                header[kNorm] = {{"dtype", "BF16"}, {"shape", {1}}, {"data_offsets", {data.size(), data.size() + 2}}};
                data += "xy";
              });
            },
            {kShard2, kNorm, "also in", "model-0000"}},
        ShardCase{"outside",
                  [](ModelCopy const& c) { edit_map(c, [](json& m) { m[kNorm] = "../secret"; }); },
                  {kIndex, kNorm, "'../secret'", "not a file of the model directory"}},
        ShardCase{"file_is_number",
                  [](ModelCopy const& c) { edit_map(c, [](json& m) { m[kNorm] = 3; }); },
                  {kIndex, kNorm, "not a string"}},
        ShardCase{"no_map", [](ModelCopy const& c) { write_file(c.path() / kIndex, "{}"); }, {kIndex, "weight_map"}},
        ShardCase{"index_no_json",
                  [](ModelCopy const& c) { write_file(c.path() / kIndex, "{"); },
                  {kIndex, "not valid JSON"}},
        ShardCase{"index_twice",
                  [](ModelCopy const& c) { write_file(c.path() / kIndex, R"({"weight_map":{"a":"b","a":"c"}})"); },
                  {kIndex, "'a'", "twice"}}),
    [](auto const& test_case) { return std::string(test_case.param.name); });

TEST(Checkpoint, NoWeightsAreRefused) {
  ScratchDir const dir;
  expect_words(refusal([&] { (void)open_checkpoint(dir.path()); }), {dir.path().string(), kSingle, kIndex});
}

TEST(MappedFile, TakesRegularFilesOnly) {
  ScratchDir const dir;
  EXPECT_THROW(MappedFile(dir.path() / "nowhere"), FileError);
  EXPECT_THROW(MappedFile(dir.path()), FileError);
  ASSERT_EQ(mkfifo((dir.path() / "fifo").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile(dir.path() / "fifo"), FileError);  // and does not wait for a writer
  write_file(dir.path() / "empty", "");
  EXPECT_TRUE(MappedFile(dir.path() / "empty").bytes().empty());
}

}  // namespace
}  // namespace expertmesh
