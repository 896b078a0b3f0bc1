// The functions a request offers, and calls in JSON.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/answer_parser.h"

namespace expertmesh {

class ToolSet {
 public:
  explicit ToolSet(std::string const& tools);  // OpenAI's JSON; what is malformed is passed over

  [[nodiscard]] bool empty() const { return functions_.empty(); }
  [[nodiscard]] bool has(std::string_view function) const { return functions_.contains(std::string(function)); }

  // The arguments of a function, which a format gives as plain text, as a JSON object: each by the type that the
  // function's parameters have in its schema, or else as JSON where it is some, or else a string.
  [[nodiscard]] std::string typed_arguments(
      std::string_view function, std::vector<std::pair<std::string_view, std::string_view>> const& arguments) const;

 private:
  using Types = std::map<std::string, std::string>;  // of each parameter; "" if it is not said
  std::map<std::string, Types> functions_;
};

// {"name", "arguments" or "parameters", "id"}: a call; none if it is not one.
std::optional<ToolCall> call_of_json(std::string_view object);
// An array of them; empty if one of them is none.
std::vector<ToolCall> calls_of_json(std::string_view array);
// As it stands where it is a JSON object; none if not.
std::optional<std::string> object_text(std::string_view json);

}  // namespace expertmesh
