#include "coordinator/text/answers/tool_set.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "coordinator/text/answers/call_reader.h"

namespace expertmesh {
namespace {

using OrderedJson = nlohmann::ordered_json;  // arguments stay in the order of the model

std::string dumped(OrderedJson const& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

// The object's text, where it is given as one, or as a string that holds one.
std::optional<std::string> arguments_of(OrderedJson const& value) {
  if (value.is_null()) return "{}";
  if (value.is_object()) return dumped(value);
  if (value.is_string()) return value == "" ? "{}" : object_text(value.get<std::string>());
  return std::nullopt;
}

std::optional<ToolCall> call_of(OrderedJson const& json) {
  if (!json.is_object() || !json.contains("name") || !json["name"].is_string()) return std::nullopt;
  OrderedJson arguments;
  for (char const* field : {"arguments", "parameters"})
    if (json.contains(field)) {
      arguments = json[field];
      break;
    }
  auto text = arguments_of(arguments);
  ToolCall call{.name = json["name"].get<std::string>(), .arguments = text.value_or("")};
  if (!text || call.name.empty()) return std::nullopt;
  if (json.contains("id") && json["id"].is_string()) call.id = json["id"].get<std::string>();
  return call;
}

// "string" if a schema allows one, else the first type it names.
std::string type_of(OrderedJson const& schema) {
  if (!schema.is_object() || !schema.contains("type")) return {};
  OrderedJson const& type = schema["type"];
  if (type.is_string()) return type.get<std::string>();
  if (!type.is_array() || type.empty()) return {};
  if (std::ranges::find(type, OrderedJson("string")) != type.end()) return "string";
  return type.front().is_string() ? type.front().get<std::string>() : "";
}

// Deep JSON is not for writing out again.
bool nests_too_deep(std::string_view json) {
  std::size_t const first = json.find_first_of("[{");
  return first != std::string_view::npos && JsonEnd().look(json.substr(first)) == JsonEnd::State::bad;
}

OrderedJson typed(std::string_view text, std::string const& type) {
  if (type == "string" || nests_too_deep(text)) return text;
  if (type == "boolean" && (text == "True" || text == "False")) return text == "True";
  OrderedJson value = OrderedJson::parse(text, nullptr, false);
  return value.is_discarded() ? OrderedJson(text) : value;
}

}  // namespace

ToolSet::ToolSet(std::string const& tools) {
  OrderedJson const list = OrderedJson::parse(tools, nullptr, false);
  if (!list.is_array()) return;
  for (auto const& tool : list) {
    if (!tool.is_object() || !tool.contains("function")) continue;
    OrderedJson const& function = tool["function"];
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) continue;
    Types& types = functions_[function["name"].get<std::string>()];
    OrderedJson const parameters = function.value("parameters", OrderedJson());
    if (!parameters.is_object() || !parameters.contains("properties") || !parameters["properties"].is_object())
      continue;
    for (auto const& [name, schema] : parameters["properties"].items()) types[name] = type_of(schema);
  }
}

std::string ToolSet::typed_arguments(
    std::string_view function, std::vector<std::pair<std::string_view, std::string_view>> const& arguments) const {
  auto const known = functions_.find(std::string(function));
  OrderedJson object = OrderedJson::object();
  for (auto const& [name, text] : arguments) {
    std::string type;
    if (known != functions_.end())
      if (auto const place = known->second.find(std::string(name)); place != known->second.end()) type = place->second;
    object[std::string(name)] = typed(text, type);
  }
  return dumped(object);
}

std::optional<ToolCall> call_of_json(std::string_view object) {
  return call_of(OrderedJson::parse(object, nullptr, false));
}

std::vector<ToolCall> calls_of_json(std::string_view array) {
  OrderedJson const list = OrderedJson::parse(array, nullptr, false);
  std::vector<ToolCall> calls;
  if (!list.is_array()) return calls;
  for (auto const& one : list) {
    auto call = call_of(one);
    if (!call) return {};
    calls.push_back(std::move(*call));
  }
  return calls;
}

std::optional<std::string> object_text(std::string_view json) {
  if (!OrderedJson::parse(json, nullptr, false).is_object()) return std::nullopt;
  return std::string(json);
}

}  // namespace expertmesh
