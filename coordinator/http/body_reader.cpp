#include "coordinator/http/body_reader.h"

#include <algorithm>
#include <cmath>

namespace expertmesh {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxFields = 1024;  // of one object: an ordered one looks its fields up one after the other

std::string shown(ApiJson const& value) {
  std::string text = value.dump(-1, ' ', true, ApiJson::error_handler_t::replace);
  return text.size() > 40 ? text.substr(0, 40) + "..." : text;
}

std::string bound(double value) {
  std::string text = ApiJson(value).dump();
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

}  // namespace

void refuse_field(std::string const& field, std::string const& what, std::optional<std::string> code, int status) {
  throw BadRequest{{.status = status,
                    .message = "'" + field + "': " + what,
                    .type = "invalid_request_error",
                    .param = field,
                    .code = std::move(code),
                    .retry_after_s = {}}};
}

ApiJson parse_body(std::string const& body) {
  auto const refuse = [](std::string message) {
    throw BadRequest{{.status = 400,
                      .message = std::move(message),
                      .type = "invalid_request_error",
                      .param = {},
                      .code = "invalid_json",
                      .retry_after_s = {}}};
  };
  std::vector<std::size_t> num_fields(kMaxDepth + 2);  // of the open object at each depth
  auto const bounded = [&](int depth, ApiJson::parse_event_t event, ApiJson&) {
    if (depth > kMaxDepth) refuse("the body nests more than " + std::to_string(kMaxDepth) + " levels deep");
    auto const level = static_cast<std::size_t>(depth);
    if (event == ApiJson::parse_event_t::object_start) num_fields[level + 1] = 0;  // its fields are one level deeper
    if (event == ApiJson::parse_event_t::key && ++num_fields[level] > kMaxFields)
      refuse("an object in the body has more than " + std::to_string(kMaxFields) + " fields");
    return true;
  };
  try {
    ApiJson object = ApiJson::parse(body, bounded);
    if (!object.is_object()) refuse("the body must be a JSON object");
    return object;
  } catch (nlohmann::json::parse_error const& error) {
    refuse("the body is not valid JSON (at byte " + std::to_string(error.byte) + ")");
  } catch (nlohmann::json::exception const&) {
    refuse("the body is not valid JSON: a number is out of range");
  }
  return {};
}

ApiJson const* BodyReader::find(std::string const& field) {
  known_.insert(field);
  auto const place = object_.find(field);
  return place == object_.end() || place->is_null() ? nullptr : &*place;
}

std::optional<bool> BodyReader::flag(std::string const& field) {
  auto const* v = find(field);
  if (!v) return std::nullopt;
  if (!v->is_boolean()) refuse_field(prefix_ + field, "must be true or false, got " + shown(*v));
  return v->get<bool>();
}

std::optional<std::string> BodyReader::text(std::string const& field) {
  auto const* v = find(field);
  if (!v) return std::nullopt;
  if (!v->is_string()) refuse_field(prefix_ + field, "must be a string, got " + shown(*v));
  return v->get<std::string>();
}

std::optional<std::int64_t> BodyReader::whole(std::string const& field, std::int64_t least, std::int64_t most) {
  auto const* v = find(field);
  if (!v) return std::nullopt;
  bool const too_large = v->is_number_unsigned() && v->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
  if (!v->is_number_integer() || too_large || v->get<std::int64_t>() < least || v->get<std::int64_t>() > most)
    refuse_field(prefix_ + field, "must be a whole number from " + std::to_string(least) + " to " +
                                      std::to_string(most) + ", got " + shown(*v));
  return v->get<std::int64_t>();
}

std::optional<double> BodyReader::number(std::string const& field, double least, double most) {
  auto const* v = find(field);
  if (!v) return std::nullopt;
  if (!v->is_number() || !std::isfinite(v->get<double>()) || v->get<double>() < least || v->get<double>() > most)
    refuse_field(prefix_ + field,
                 "must be a number from " + bound(least) + " to " + bound(most) + ", got " + shown(*v));
  return v->get<double>();
}

void BodyReader::only(std::string const& field, std::vector<ApiJson> const& neutral) {
  auto const* v = find(field);
  if (v && std::ranges::find(neutral, *v) == neutral.end())
    refuse_field(prefix_ + field, shown(*v) + " is not supported");
}

void BodyReader::ignore(std::vector<std::string> const& fields) {
  known_.insert(fields.begin(), fields.end());
}

std::vector<std::string> BodyReader::unknown() const {
  std::vector<std::string> fields;
  for (auto const& [field, value] : object_.items())
    if (!known_.contains(field)) fields.push_back(prefix_ + field);
  return fields;
}

}  // namespace expertmesh
