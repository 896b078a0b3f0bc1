#include "coordinator/text/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "coordinator/text/json_fields.h"
#include "coordinator/text/regex_pattern.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

std::string unicode_form(std::string const& text, utf8proc_option_t options) {
  utf8proc_uint8_t* mapped = nullptr;
  auto const length = utf8proc_map(reinterpret_cast<utf8proc_uint8_t const*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> const owner(mapped, std::free);
  EM_CHECK(length >= 0, "normalising " << text.size() << " bytes of valid UTF-8: " << utf8proc_errmsg(length));
  return {reinterpret_cast<char const*>(mapped), static_cast<std::size_t>(length)};
}

std::string lower_case(std::string const& text) {
  std::string out;
  std::string_view rest = text;
  while (!rest.empty()) {
    std::size_t const length = character_length(rest);
    char32_t const c = code_point(rest.substr(0, length));
    if (c == 0x130)
      out += "i\xCC\x87";  // the one letter whose lower case is two characters
    else
      out += encode_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    rest.remove_prefix(length);
  }
  return out;
}

std::string stripped(std::string const& text, bool left, bool right) {
  std::size_t begin = 0;
  std::size_t end = text.size();
  while (left && begin < end) {
    std::size_t const length = character_length(std::string_view(text).substr(begin));
    if (!is_space(code_point(std::string_view(text).substr(begin, length)))) break;
    begin += length;
  }
  while (right && end > begin) {
    std::size_t const start = previous_character(text, end);
    if (!is_space(code_point(std::string_view(text).substr(start, end - start)))) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

utf8proc_option_t form_options(std::string const& type) {
  int options = UTF8PROC_STABLE;
  options |= type == "NFC" || type == "NFKC" ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (type == "NFKC" || type == "NFKD") options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

}  // namespace

std::string replaced(std::string const& text, std::string const& what, std::string const& with) {
  if (what.empty()) return text;
  std::string out;
  std::size_t at = 0;
  for (std::size_t found = text.find(what); found != std::string::npos; found = text.find(what, at)) {
    out.append(text, at, found - at);
    out += with;
    at = found + what.size();
  }
  return out.append(text, at);
}

Normalizer::Normalizer(Json const& spec) {
  if (!spec.is_null()) add(spec);
}

void Normalizer::add(Json const& spec) {
  std::string const where = "normalizer";
  auto const type = json_field<std::string>(spec, "type", where);
  if (type == "Sequence") {
    for (auto const& step : json_part(spec, "normalizers", where)) add(step);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    steps_.emplace_back(
        [options = form_options(type)](std::string const& text) { return unicode_form(text, options); });
  } else if (type == "Lowercase") {
    steps_.emplace_back([](std::string const& text) { return lower_case(text); });
  } else if (type == "Strip") {
    bool const left = json_field_or(spec, "strip_left", true, where);
    bool const right = json_field_or(spec, "strip_right", true, where);
    steps_.emplace_back([left, right](std::string const& text) { return stripped(text, left, right); });
  } else if (type == "Prepend") {
    steps_.emplace_back([prefix = json_field<std::string>(spec, "prepend", where)](std::string const& text) {
      return text.empty() ? text : prefix + text;
    });
  } else if (type == "Replace") {
    auto const& pattern = json_part(spec, "pattern", where);
    auto const content = json_field<std::string>(spec, "content", where);
    if (pattern.contains("String")) {
      steps_.emplace_back([what = json_field<std::string>(pattern, "String", where), content](std::string const& text) {
        return replaced(text, what, content);
      });
    } else {
      steps_.emplace_back(
          [regex = RegexPattern(json_field<std::string>(pattern, "Regex", where)), content](std::string const& text) {
            std::string out;
            std::size_t at = 0;
            for (auto const& [begin, end] : regex.matches(text)) {
              out.append(text, at, begin - at);
              out += content;
              at = end;
            }
            return out.append(text, at);
          });
    }
  } else {
    tokenizer_error(where, "kind '" + type + "' is not supported");
  }
}

std::string Normalizer::operator()(std::string text) const {
  for (auto const& step : steps_) text = step(std::move(text));
  return text;
}

}  // namespace expertmesh
