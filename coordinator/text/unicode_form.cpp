#include "coordinator/text/unicode_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "common/base/check.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

// What decomposes or has a combining class since Unicode 12.1 and later. Tokenizers are trained with the tables of the
// tokenizers library, which are older: there these are ordinary characters.
struct Letters {
  char32_t first, last;
};
constexpr Letters kNewerForms[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},   {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785},
    {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C},
    {0x1FBF0, 0x1FBF9}};

bool is_newer(utf8proc_int32_t c) {
  auto const above = std::ranges::upper_bound(kNewerForms, static_cast<char32_t>(c), {}, &Letters::first);
  return above != std::begin(kNewerForms) && static_cast<char32_t>(c) <= std::prev(above)->last;
}

bool is_ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

int combining_class(utf8proc_int32_t c) {
  return is_newer(c) ? 0 : utf8proc_get_property(c)->combining_class;
}

// Marks behind a base into the order of their classes. The library's own function would take quadratic time for it.
void order_marks(std::vector<utf8proc_int32_t>& points) {
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    auto const end = std::find_if(begin, points.end(), [](auto c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

void append_normalized(std::string_view text, UnicodeForm form, std::string& out) {
  static thread_local std::vector<utf8proc_int32_t> points;
  points.clear();
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (form.compatibility) options |= UTF8PROC_COMPAT;
  while (!text.empty()) {
    std::size_t const length = character_length(text);
    std::array<utf8proc_int32_t, 32> parts{};  // the longest decomposition has 18
    int last_boundclass = 0;
    auto const c = static_cast<utf8proc_int32_t>(code_point(text.substr(0, length)));
    parts[0] = c;
    auto const count = is_newer(c) ? 1
                                   : utf8proc_decompose_char(c, parts.data(), parts.size(),
                                                             static_cast<utf8proc_option_t>(options), &last_boundclass);
    EM_CHECK(count >= 0 && static_cast<std::size_t>(count) <= parts.size(), utf8proc_errmsg(count));
    points.insert(points.end(), parts.begin(), parts.begin() + count);
    text.remove_prefix(length);
  }
  order_marks(points);
  for (auto begin = points.begin(); begin != points.end();) {
    // A newer character stands alone: nothing composes with it or across it.
    auto const end = is_newer(*begin) ? begin + 1 : std::find_if(begin, points.end(), is_newer);
    utf8proc_ssize_t count = end - begin;
    if (form.compose && !is_newer(*begin))
      count =
          utf8proc_normalize_utf32(&*begin, count, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    for (utf8proc_ssize_t i = 0; i < count; ++i) out += encode_utf8(static_cast<char32_t>(*(begin + i)));
    begin = end;
  }
}

}  // namespace

std::string unicode_normalized(std::string_view text, UnicodeForm form) {
  // Nothing changes or composes with an ASCII character that follows it: text falls apart before each of them, and what
  // is ASCII alone stays.
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && is_ascii(text[end])) ++end;
    if (end == text.size()) return out.append(text.substr(at));
    std::size_t const begin = end > at ? end - 1 : end;  // the last ASCII character may be a base
    out += text.substr(at, begin - at);
    while (end < text.size() && !is_ascii(text[end])) ++end;
    append_normalized(text.substr(begin, end - begin), form, out);
    at = end;
  }
  return out;
}

}  // namespace expertmesh
