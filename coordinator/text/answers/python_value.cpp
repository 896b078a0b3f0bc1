#include "coordinator/text/answers/python_value.h"

#include <nlohmann/json.hpp>

#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

constexpr int kMaxDepth = 64;

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' || c == '-' ||
         c == '.' || c == '_';
}

// Two hexadecimal digits follow \x, four \u, eight \U.
void read_code_point(CallReader& in, int digits, std::string& out) {
  char32_t code = 0;
  for (int i = 0; i < digits; ++i) {
    char const c = in.peek();
    char32_t const digit = c >= '0' && c <= '9'                 ? c - '0'
                           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                                : 16;
    if (digit > 15) return in.fail();
    code = code * 16 + digit;
    if (code > 0x10FFFF) return in.fail();
    in.skip();
  }
  out += code >= 0xD800 && code < 0xE000 ? std::string(kReplacement) : encode_utf8(code);
}

std::string read_text(CallReader& in) {
  char const quote = in.peek();
  in.skip();
  std::string text;
  while (in.good()) {
    char const c = in.peek();
    if (!in.good()) break;
    in.skip();
    if (c == quote) return text;
    if (c != '\\') {
      text += c;
      continue;
    }
    char const escaped = in.peek();
    in.skip();
    constexpr std::string_view kFrom = "ntrbfav0\\'\"";
    constexpr std::string_view kTo("\n\t\r\b\f\a\v\0\\'\"", 11);
    if (std::size_t const place = kFrom.find(escaped); place != std::string_view::npos)
      text += kTo[place];
    else if (escaped == 'x' || escaped == 'u' || escaped == 'U')
      read_code_point(in, escaped == 'x' ? 2 : escaped == 'u' ? 4 : 8, text);
    else if (escaped != '\n')  // an escaped newline is none
      (text += '\\') += escaped;
  }
  return text;
}

std::string read_word(CallReader& in) {
  std::string word;
  while (is_word(in.peek())) {
    word += in.peek();
    in.skip();
  }
  if (word == "True") word = "true";
  if (word == "False") word = "false";
  if (word == "None") word = "null";
  if (in.good() && !nlohmann::json::accept(word)) in.fail();
  return word;
}

std::string read_value(CallReader& in, int depth);

// Up to `end`; of a dict with keys.
std::string read_items(CallReader& in, char end, int depth) {
  bool const dict = end == '}';
  std::string json(1, dict ? '{' : '[');
  in.skip();
  in.space();
  while (in.good() && in.peek() != end) {
    if (json.size() > 1) {
      in.literal(",");
      in.space();
      if (in.peek() == end) break;
      json += ", ";
    }
    if (dict) {
      if (char const quote = in.peek(); quote != '"' && quote != '\'') in.fail();
      json += json_string(read_text(in)) + ": ";
      in.space();
      in.literal(":");
      in.space();
    }
    json += read_value(in, depth + 1);
    in.space();
  }
  in.skip();
  return json + (dict ? '}' : ']');
}

std::string read_value(CallReader& in, int depth) {
  if (depth > kMaxDepth) in.fail();
  switch (in.peek()) {
    case '"':
    case '\'':
      return json_string(read_text(in));
    case '[':
      return read_items(in, ']', depth);
    case '(':
      return read_items(in, ')', depth);
    case '{':
      return read_items(in, '}', depth);
    default:
      return read_word(in);
  }
}

}  // namespace

std::string read_python_value(CallReader& in) {
  return read_value(in, 0);
}

std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace expertmesh
