#include "coordinator/http/body_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/base/json_watch.h"
#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxFields = 1024;  // of one object: an ordered one looks its fields up one after the other

std::string shown(ApiJson const& value) {
  std::string text = dumped(value);
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

namespace {

[[noreturn]] void refuse(std::string message) {
  throw BadRequest{{.status = 400,
                    .message = std::move(message),
                    .type = "invalid_request_error",
                    .param = {},
                    .code = "invalid_json",
                    .retry_after_s = {}}};
}

// Refuses what a parse would take, and what would make finding a field slow.
class BoundedWatch final : public JsonWatch {
  void on_depth(std::size_t depth) override {
    if (depth > kMaxDepth) refuse("the body nests more than " + std::to_string(kMaxDepth) + " levels deep");
  }
  void on_object() override { num_fields_.push_back(0); }
  void on_object_end() override { num_fields_.pop_back(); }
  void on_key(std::string const& /*key*/) override {
    if (++num_fields_.back() > kMaxFields)
      refuse("an object in the body has more than " + std::to_string(kMaxFields) + " fields");
  }
  std::vector<std::size_t> num_fields_;  // of the open objects
};

}  // namespace

ApiJson parse_body(std::string const& body) {
  try {
    BoundedWatch().look_through(body);
    ApiJson object = ApiJson::parse(body);
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
  auto const number = whole_number<std::int64_t>(*v);
  if (!number || *number < least || *number > most)
    refuse_field(prefix_ + field, "must be a whole number from " + std::to_string(least) + " to " +
                                      std::to_string(most) + ", got " + shown(*v));
  return number;
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
