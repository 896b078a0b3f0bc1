// Reads the fields of a JSON body: each is used, refused by name, or listed as unknown. Included by .cpp files of this
// folder only.
#pragma once
#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/error.h"

namespace expertmesh {

using ApiJson = nlohmann::ordered_json;

// Thrown inside a parse function, which turns it into a Result.
struct BadRequest {
  ApiError error;
};
[[noreturn]] void refuse_field(std::string const& field, std::string const& what, std::optional<std::string> code = {},
                               int status = 400);

// The body as an object; nesting and fields per object are bounded. Of a repeated field the last one counts.
ApiJson parse_body(std::string const& body);

// A whole number within T's range, none if it is no such. 2.0 is one, as clients in languages without integers write
// it.
template <std::integral T>
std::optional<T> whole_number(ApiJson const& value) {
  if (value.is_number_float()) {
    double const number = value.get<double>();
    // Beyond 2^53 a double does not tell one whole number from the next.
    double const end = std::ldexp(1.0, std::min(std::numeric_limits<T>::digits, 53));
    bool const fits = number == std::trunc(number) && number < end && number >= (std::unsigned_integral<T> ? 0 : -end);
    return fits ? std::optional(static_cast<T>(number)) : std::nullopt;
  }
  bool const fits = value.is_number_unsigned()
                        ? std::in_range<T>(value.get<std::uint64_t>())
                        : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>());
  return fits ? std::optional(value.get<T>()) : std::nullopt;
}

class BodyReader {
 public:
  explicit BodyReader(ApiJson const& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  // The value, null if the field is absent or null. Marks the field as known.
  ApiJson const* find(std::string const& field);
  std::optional<bool> flag(std::string const& field);
  std::optional<std::string> text(std::string const& field);
  std::optional<std::int64_t> whole(std::string const& field, std::int64_t least, std::int64_t most);
  std::optional<double> number(std::string const& field, double least, double most);
  // A feature that is not built: fine if absent, null, or one of these values.
  void only(std::string const& field, std::vector<ApiJson> const& neutral);
  void ignore(std::vector<std::string> const& fields);
  [[nodiscard]] std::vector<std::string> unknown() const;

 private:
  ApiJson const& object_;
  std::string prefix_;
  std::set<std::string> known_;
};

}  // namespace expertmesh
