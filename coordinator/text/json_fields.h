// Reading tokenizer.json: every access says where it failed. Included by .cpp files of this folder only.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "common/base/error.h"

namespace expertmesh {

using Json = nlohmann::json;

[[noreturn]] inline void tokenizer_error(std::string const& where, std::string const& what) {
  throw ModelError("tokenizer.json: " + where + ": " + what);
}

template <class T>
T json_field(Json const& object, char const* field, std::string const& where) {
  if (!object.is_object() || !object.contains(field)) tokenizer_error(where, std::string("no field '") + field + "'");
  try {
    return object[field].get<T>();
  } catch (Json::exception const&) {
    tokenizer_error(where, std::string("field '") + field + "' has the wrong type");
  }
}

template <class T>
T json_field_or(Json const& object, char const* field, T fallback, std::string const& where) {
  if (!object.is_object() || !object.contains(field) || object[field].is_null()) return fallback;
  return json_field<T>(object, field, where);
}

}  // namespace expertmesh
