#include "coordinator/text/tokenizer_config.h"

#include <charconv>
#include <fstream>

#include "coordinator/text/json_fields.h"

namespace expertmesh {
namespace {

constexpr char const* kFile = "tokenizer_config.json";

Json read_object(std::filesystem::path const& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  std::ifstream in(path);
  Json file = Json::parse(in, nullptr, false);
  if (!file.is_object()) throw ModelError(path.filename().string() + ": not a JSON object");
  return file;
}

[[noreturn]] void fail(std::string const& what) {
  throw ModelError(std::string(kFile) + ": " + what);
}

std::optional<bool> flag(Json const& file, char const* name) {
  if (!file.contains(name) || file[name].is_null()) return std::nullopt;
  if (!file[name].is_boolean()) fail(std::string("field '") + name + "' is neither true nor false");
  return file[name].get<bool>();
}

// A token's content, or an object that holds it.
std::optional<std::string> token(Json const& file, char const* name) {
  if (!file.contains(name) || file[name].is_null()) return std::nullopt;
  Json const& value = file[name].is_object() && file[name].contains("content") ? file[name]["content"] : file[name];
  if (!value.is_string()) fail(std::string("field '") + name + "' is not a token");
  return value.get<std::string>();
}

std::vector<AddedToken> added_tokens(Json const& file) {
  if (!file.contains("added_tokens_decoder") || file["added_tokens_decoder"].is_null()) return {};
  if (!file["added_tokens_decoder"].is_object()) fail("field 'added_tokens_decoder' is not an object");
  Json list = Json::array();
  for (auto const& [id, entry] : file["added_tokens_decoder"].items()) {
    TokenId number = 0;
    auto const [end, error] = std::from_chars(id.data(), id.data() + id.size(), number);
    if (error != std::errc{} || end != id.data() + id.size() || !entry.is_object())
      fail("added_tokens_decoder: '" + id + "' is no token");
    list.push_back(entry);
    list.back()["id"] = number;
  }
  return AddedTokens::read(list);
}

}  // namespace

TokenizerConfig TokenizerConfig::load(std::filesystem::path const& model_dir) {
  Json const file = read_object(model_dir / kFile);
  Json const map = read_object(model_dir / "special_tokens_map.json");
  auto const named = [&](char const* name) { return file.contains(name) ? token(file, name) : token(map, name); };
  return {.clean_up_spaces = flag(file, "clean_up_tokenization_spaces").value_or(false),
          .add_bos = flag(file, "add_bos_token"),
          .add_eos = flag(file, "add_eos_token"),
          .bos = named("bos_token"),
          .eos = named("eos_token"),
          .legacy = flag(file, "legacy").value_or(false),
          .added = added_tokens(file)};
}

}  // namespace expertmesh
