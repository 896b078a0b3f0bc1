// Reading tokenizer.json: every access says where it failed. Included by .cpp files of this folder only.
#pragma once
#include <concepts>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "common/base/error.h"

namespace expertmesh {

using Json = nlohmann::json;

[[noreturn]] inline void tokenizer_error(std::string const& where, std::string const& what) {
  throw ModelError("tokenizer.json: " + where + ": " + what);
}

// A part of the file, by reference: vocabularies and merges are large.
inline Json const& json_part(Json const& object, char const* field, std::string const& where) {
  if (!object.is_object() || !object.contains(field)) tokenizer_error(where, std::string("no field '") + field + "'");
  return object[field];
}

// An integer must be one and fit: the library itself would wrap it or cut off a fraction.
template <class T>
T json_value(Json const& value, std::string const& field, std::string const& where) {
  if constexpr (std::integral<T> && !std::same_as<T, bool>) {
    bool const fits = value.is_number_unsigned()
                          ? std::in_range<T>(value.get<std::uint64_t>())
                          : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>());
    if (!fits) tokenizer_error(where, "field '" + field + "' is not a number of its range: " + value.dump());
  }
  try {
    return value.get<T>();
  } catch (Json::exception const&) {
    tokenizer_error(where, "field '" + field + "' has the wrong type");
  }
}

template <class T>
T json_field(Json const& object, char const* field, std::string const& where) {
  return json_value<T>(json_part(object, field, where), field, where);
}

template <class T>
T json_field_or(Json const& object, char const* field, T fallback, std::string const& where) {
  if (!object.is_object() || !object.contains(field) || object[field].is_null()) return fallback;
  return json_field<T>(object, field, where);
}

}  // namespace expertmesh
