// Reads one JSON object field by field: every field must be there, have its type, and be asked for. Private to
// common/protocol.
#pragma once
#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "common/protocol/control_messages.h"

namespace expertmesh::control {

class JsonReader {
 public:
  // where: path for error messages, e.g. "assign.model"
  JsonReader(nlohmann::json const& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) throw MessageError(where_ + ": not an object");
  }

  [[noreturn]] void fail(std::string const& field, std::string const& what) const {
    throw MessageError(where_ + "." + field + ": " + what);
  }

  nlohmann::json const& at(std::string const& field) {
    auto const found = object_.find(field);
    if (found == object_.end()) fail(field, "missing");
    seen_.insert(field);
    return *found;
  }

  // Whether an optional field is there.
  [[nodiscard]] bool has(std::string const& field) const { return object_.contains(field); }

  std::string text(std::string const& field) {
    auto const& value = at(field);
    if (!value.is_string()) fail(field, "not a string");
    return value.get<std::string>();
  }

  template <class T = std::uint64_t>
  T number(std::string const& field, std::uint64_t max = static_cast<std::uint64_t>(std::numeric_limits<T>::max())) {
    return static_cast<T>(unsigned_number(at(field), field, max));
  }

  float real(std::string const& field) {
    auto const& value = at(field);
    if (!value.is_number()) fail(field, "not a number");
    return value.get<float>();
  }

  bool boolean(std::string const& field) {
    auto const& value = at(field);
    if (!value.is_boolean()) fail(field, "not a boolean");
    return value.get<bool>();
  }

  template <class T>
  T id(std::string const& field) {
    return T(number<typename T::rep>(field));
  }

  // The entry of `names` that the field spells out: {{"auto", LoadFormat::automatic}, …}.
  template <class T>
  using Named = std::pair<char const*, T>;
  template <class T>
  T choice(std::string const& field, std::span<Named<T> const> names) {
    std::string const value = text(field);
    for (auto const& [name, result] : names)
      if (value == name) return result;
    fail(field, "unknown value '" + value + "'");
  }
  template <class T, std::size_t N>
  T choice(std::string const& field, std::array<Named<T>, N> const& names) {
    return choice<T>(field, std::span<Named<T> const>(names));
  }
  template <class T>
  T choice(std::string const& field, std::initializer_list<Named<T>> names) {
    return choice<T>(field, std::span<Named<T> const>(names.begin(), names.size()));
  }

  std::vector<std::uint32_t> numbers(std::string const& field) {
    std::vector<std::uint32_t> out;
    for (auto const& item : array(field))
      out.push_back(
          static_cast<std::uint32_t>(unsigned_number(item, field, std::numeric_limits<std::uint32_t>::max())));
    return out;
  }

  std::vector<std::string> texts(std::string const& field) {
    std::vector<std::string> out;
    for (auto const& item : array(field)) {
      if (!item.is_string()) fail(field, "holds something that is not a string");
      out.push_back(item.get<std::string>());
    }
    return out;
  }

  nlohmann::json const& array(std::string const& field) {
    auto const& value = at(field);
    if (!value.is_array()) fail(field, "not an array");
    return value;
  }

  // Refuses fields nobody asked for.
  void finish() const {
    for (auto const& [field, value] : object_.items())
      if (!seen_.contains(field)) fail(field, "unknown field");
  }

 private:
  std::uint64_t unsigned_number(nlohmann::json const& value, std::string const& field, std::uint64_t max) const {
    if (!value.is_number_unsigned()) fail(field, "not an unsigned integer");
    auto const result = value.get<std::uint64_t>();
    if (result > max) fail(field, std::to_string(result) + " is more than " + std::to_string(max));
    return result;
  }

  nlohmann::json const& object_;
  std::string where_;
  std::set<std::string> seen_;
};

}  // namespace expertmesh::control
