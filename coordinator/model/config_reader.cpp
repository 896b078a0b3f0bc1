#include "coordinator/model/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "common/base/error.h"
#include "common/checkpoint/strict_json.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

std::string shown(Json const& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);  // escaped: pure ASCII
  return text.size() > 60 ? text.substr(0, 60) + "…" : text;
}

bool is_off(Json const& v) {
  return v.is_null() || (v.is_boolean() && !v.get<bool>()) || (v.is_number() && v.get<double>() == 0) ||
         ((v.is_array() || v.is_object() || v.is_string()) && (v.empty() || v == ""));
}

}  // namespace

struct ConfigReader::Impl {
  std::string where;  // "config.json" or "config.json: rope_parameters"
  Json json;
  std::set<std::string, std::less<>> used;

  Json const* find(std::string_view field) {
    used.emplace(field);
    auto const place = json.find(std::string(field));
    return place == json.end() || place->is_null() ? nullptr : &*place;
  }
  [[noreturn]] void refuse(std::string_view field, std::string const& why) const {
    throw ModelError(where + ": field " + in_quotes(field) + ": " + one_line(why));
  }
  [[noreturn]] void wrong(std::string_view field, char const* expected, Json const& got) const {
    refuse(field, std::string("expected ") + expected + ", got " + shown(got));
  }
  std::size_t whole(std::string_view field, Json const& v, std::size_t least, std::size_t most,
                    char const* expected) const {
    if (!v.is_number_unsigned() || v.get<std::uint64_t>() < least) wrong(field, expected, v);
    if (v.get<std::uint64_t>() > most)
      refuse(field, shown(v) + " is more than the " + std::to_string(most) + " supported here");
    return v.get<std::size_t>();
  }
};

ConfigReader::ConfigReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ConfigReader::ConfigReader(ConfigReader&&) noexcept = default;
ConfigReader::~ConfigReader() = default;

ConfigReader::ConfigReader(std::filesystem::path const& file) : impl_(std::make_unique<Impl>()) {
  impl_->where = file.filename().string();
  impl_->json = read_strict_json(file);
}

bool ConfigReader::has(std::string_view field) const {
  return impl_->find(field) != nullptr;
}

bool ConfigReader::is_null(std::string_view field) const {
  return !has(field) && impl_->json.contains(std::string(field));
}

bool ConfigReader::is_list(std::string_view field) const {
  Json const* v = impl_->find(field);
  return v != nullptr && v->is_array();
}

bool ConfigReader::is_text(std::string_view field) const {
  Json const* v = impl_->find(field);
  return v != nullptr && v->is_string();
}

std::vector<std::string> ConfigReader::fields() const {
  std::vector<std::string> names;
  for (auto const& [field, value] : impl_->json.items()) names.push_back(field);
  return names;
}

std::size_t ConfigReader::count(std::string_view field, std::size_t most) {
  Json const* v = impl_->find(field);
  if (!v) refuse(field, "missing");
  return impl_->whole(field, *v, 1, most, "a whole number of at least 1");
}

std::size_t ConfigReader::count_or(std::string_view field, std::size_t fallback) {
  return has(field) ? count(field) : fallback;
}

std::optional<std::size_t> ConfigReader::optional_count(std::string_view field) {
  return has(field) ? std::optional(count(field)) : std::nullopt;
}

std::size_t ConfigReader::index(std::string_view field) {
  Json const* v = impl_->find(field);
  if (!v) refuse(field, "missing");
  return impl_->whole(field, *v, 0, kMostCount, "a whole number");
}

double ConfigReader::number_or(std::string_view field, double fallback) {
  Json const* v = impl_->find(field);
  if (!v) return fallback;
  if (!v->is_number() || !std::isfinite(v->get<double>())) impl_->wrong(field, "a number", *v);
  return v->get<double>();
}

bool ConfigReader::flag_or(std::string_view field, bool fallback) {
  Json const* v = impl_->find(field);
  if (!v) return fallback && !is_null(field);
  if (!v->is_boolean()) impl_->wrong(field, "true or false", *v);
  return v->get<bool>();
}

std::string ConfigReader::text(std::string_view field) {
  Json const* v = impl_->find(field);
  if (!v) refuse(field, "missing");
  if (!v->is_string()) impl_->wrong(field, "a string", *v);
  return v->get<std::string>();
}

std::string ConfigReader::text_or(std::string_view field, std::string_view fallback) {
  return has(field) ? text(field) : std::string(fallback);
}

std::vector<std::size_t> ConfigReader::indices(std::string_view field) {
  std::vector<std::size_t> list;
  Json const* v = impl_->find(field);
  if (!v) return list;
  if (!v->is_array()) impl_->wrong(field, "a list", *v);
  for (auto const& item : *v) list.push_back(impl_->whole(field, item, 0, kMostCount, "a list of whole numbers"));
  return list;
}

std::vector<double> ConfigReader::numbers(std::string_view field) {
  std::vector<double> list;
  Json const* v = impl_->find(field);
  if (!v) return list;
  if (!v->is_array()) impl_->wrong(field, "a list", *v);
  for (auto const& item : *v) {
    if (!item.is_number() || !std::isfinite(item.get<double>())) impl_->wrong(field, "a list of numbers", *v);
    list.push_back(item.get<double>());
  }
  return list;
}

std::vector<TokenId> ConfigReader::token_ids(std::string_view field) {
  std::vector<TokenId> list;
  Json const* v = impl_->find(field);
  if (!v) return list;
  auto const add = [&](Json const& item) {
    list.push_back(static_cast<TokenId>(impl_->whole(field, item, 0, kMostCount, "a token id or a list of them")));
  };
  if (v->is_array())
    for (auto const& item : *v) add(item);
  else
    add(*v);
  return list;
}

std::vector<std::string> ConfigReader::texts(std::string_view field) {
  std::vector<std::string> list;
  Json const* v = impl_->find(field);
  if (!v) return list;
  if (!v->is_array()) impl_->wrong(field, "a list", *v);
  for (auto const& item : *v) {
    if (!item.is_string()) impl_->wrong(field, "a list of strings", *v);
    list.push_back(item.get<std::string>());
  }
  return list;
}

std::optional<ConfigReader> ConfigReader::object(std::string_view field) {
  Json const* v = impl_->find(field);
  if (!v) return std::nullopt;
  if (!v->is_object()) impl_->wrong(field, "an object", *v);
  auto nested = std::make_unique<Impl>();
  nested->where = impl_->where + ": " + std::string(field);
  nested->json = *v;
  return ConfigReader(std::move(nested));
}

void ConfigReader::without_effect(std::vector<std::string_view> const& fields) {
  for (auto field : fields) impl_->used.emplace(field);
}

void ConfigReader::must_be_off(std::string_view field) {
  Json const* v = impl_->find(field);
  if (v && !is_off(*v)) refuse(field, shown(*v) + " is not supported");
}

void ConfigReader::refuse(std::string_view field, std::string const& why) const {
  impl_->refuse(field, why);
}

void ConfigReader::finish() const {
  for (auto const& [field, value] : impl_->json.items())
    if (!impl_->used.contains(field) && !is_off(value))
      refuse(field, "unknown to this model family (value " + shown(value) + ")");
}

}  // namespace expertmesh
