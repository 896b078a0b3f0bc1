#include "coordinator/text/regex_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "common/base/error.h"

namespace expertmesh {
namespace {

// Unicode White_Space: PCRE2's own \s takes U+180E too.
constexpr char const* kSpaces =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

std::string error_text(int code) {
  std::array<unsigned char, 200> message{};
  pcre2_get_error_message(code, message.data(), message.size());
  return reinterpret_cast<char const*>(message.data());
}

// \s and \S spelt out; everything else means the same in both engines.
std::string translated(std::string const& pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    char const c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      char const escaped = pattern[++i];
      if (escaped == 's')
        out += in_class ? kSpaces : "[" + std::string(kSpaces) + "]";
      else if (escaped == 'S' && !in_class)
        out += "[^" + std::string(kSpaces) + "]";
      else if (escaped == 'S')
        throw ModelError("tokenizer.json: pattern '" + pattern + "': \\S inside a class is not supported");
      else
        (out += c) += escaped;
      continue;
    }
    if (in_class && c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&')
      throw ModelError("tokenizer.json: pattern '" + pattern + "': class intersections (&&) are not supported");
    if (!in_class && c == '[') {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') (out += '\\') += pattern[++i];
      continue;
    }
    if (in_class && c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

struct RegexPattern::Code {
  pcre2_code* code = nullptr;
  Code() = default;
  Code(Code const&) = delete;
  Code& operator=(Code const&) = delete;
  ~Code() { pcre2_code_free(code); }
};

RegexPattern::RegexPattern(std::string const& pattern) {
  std::string const text = translated(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  // Oniguruma's $ and ^ match at every line.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
  if (!code->code) {
    throw ModelError("tokenizer.json: pattern '" + pattern + "': " + error_text(error));
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // without a JIT the interpreter serves
  code_ = std::move(code);
}

std::vector<std::pair<std::size_t, std::size_t>> RegexPattern::matches(std::string_view text) const {
  std::vector<std::pair<std::size_t, std::size_t>> found;
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> const data(pcre2_match_data_create(1, nullptr),
                                                                            pcre2_match_data_free);
  auto const* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  PCRE2_SIZE at = 0;
  while (at < text.size()) {
    int result = pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)  // a very long match: the interpreter keeps its state on the heap
      result =
          pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), nullptr);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) throw OutsideError("pcre2_match", result, error_text(result), {});
    PCRE2_SIZE const* bounds = pcre2_get_ovector_pointer(data.get());
    if (bounds[1] > bounds[0]) found.emplace_back(bounds[0], bounds[1]);
    at = bounds[1];
    if (bounds[1] == bounds[0]) {  // an empty match: go on behind the next character
      do ++at;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
    }
  }
  return found;
}

}  // namespace expertmesh
