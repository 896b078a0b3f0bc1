#include "coordinator/text/code_point_set.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>

#include "common/base/check.h"
#include "coordinator/text/unicode_category.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {

CodePointSet::CodePointSet(std::vector<Range> ranges) {
  std::ranges::sort(ranges, {}, &Range::first);
  for (Range const& r : ranges) {
    if (r.first > r.last) continue;
    if (!ranges_.empty() && r.first <= ranges_.back().last + 1)
      ranges_.back().last = std::max(ranges_.back().last, r.last);
    else
      ranges_.push_back(r);
  }
}

bool CodePointSet::contains(char32_t c) const {
  auto const above = std::ranges::upper_bound(ranges_, c, {}, &Range::first);
  return above != ranges_.begin() && c <= std::prev(above)->last;
}

CodePointSet CodePointSet::complement() const {
  CodePointSet out;
  char32_t next = 0;
  for (Range const& r : ranges_) {
    if (r.first > next) out.ranges_.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kLastCodePoint) out.ranges_.push_back({next, kLastCodePoint});
  return out;
}

CodePointSet CodePointSet::united(CodePointSet const& other) const {
  std::vector<Range> all = ranges_;
  all.insert(all.end(), other.ranges_.begin(), other.ranges_.end());
  return CodePointSet(std::move(all));
}

CodePointSet CodePointSet::intersected(CodePointSet const& other) const {
  return complement().united(other.complement()).complement();
}

namespace {

char32_t folded(char32_t c) {
  if (c == 0x130 || c == 0x131) return c;  // the Turkish letters are no forms of i
  auto const i = static_cast<utf8proc_int32_t>(c);
  return static_cast<char32_t>(utf8proc_tolower(utf8proc_toupper(i)));
}

// By folded form, of the letters that have more than one form.
std::unordered_map<char32_t, std::vector<char32_t>> const& case_forms() {
  static auto const forms = [] {
    std::unordered_map<char32_t, std::vector<char32_t>> all;
    for (char32_t c = 0; c <= kLastCodePoint; ++c)
      if (char32_t const f = folded(c); f != c) all[f].push_back(c);
    for (auto& [f, others] : all) others.push_back(f);
    return all;
  }();
  return forms;
}

// All code points, where neighbours of the same category are one run.
std::vector<std::pair<CodePointSet::Range, utf8proc_category_t>> const& category_runs() {
  static auto const runs = [] {
    std::vector<std::pair<CodePointSet::Range, utf8proc_category_t>> all;
    for (char32_t c = 0; c <= kLastCodePoint; ++c) {
      auto const category = general_category(c);
      if (all.empty() || all.back().second != category) all.push_back({{c, c}, category});
      all.back().first.last = c;
    }
    return all;
  }();
  return runs;
}

constexpr std::array<std::pair<char const*, char const*>, 30> kCategories{{
    {"Cn", "unassigned"},
    {"Lu", "uppercaseletter"},
    {"Ll", "lowercaseletter"},
    {"Lt", "titlecaseletter"},
    {"Lm", "modifierletter"},
    {"Lo", "otherletter"},
    {"Mn", "nonspacingmark"},
    {"Mc", "spacingmark"},
    {"Me", "enclosingmark"},
    {"Nd", "decimalnumber"},
    {"Nl", "letternumber"},
    {"No", "othernumber"},
    {"Pc", "connectorpunctuation"},
    {"Pd", "dashpunctuation"},
    {"Ps", "openpunctuation"},
    {"Pe", "closepunctuation"},
    {"Pi", "initialpunctuation"},
    {"Pf", "finalpunctuation"},
    {"Po", "otherpunctuation"},
    {"Sm", "mathsymbol"},
    {"Sc", "currencysymbol"},
    {"Sk", "modifiersymbol"},
    {"So", "othersymbol"},
    {"Zs", "spaceseparator"},
    {"Zl", "lineseparator"},
    {"Zp", "paragraphseparator"},
    {"Cc", "control"},
    {"Cf", "format"},
    {"Cs", "surrogate"},
    {"Co", "privateuse"},
}};  // in the order of utf8proc_category_t

constexpr std::array<std::pair<char const*, char const*>, 7> kMajorCategories{{
    {"l", "letter"},
    {"m", "mark"},
    {"n", "number"},
    {"p", "punctuation"},
    {"s", "symbol"},
    {"z", "separator"},
    {"c", "other"},
}};

std::string plain_name(std::string_view name) {
  std::string out;
  for (char c : name)
    if (c != '_' && c != '-' && c != ' ') out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return out;
}

std::optional<CodePointSet> category_set(std::string const& name) {
  char major = 0;
  int minor = -1;
  for (auto const& [letter, word] : kMajorCategories)
    if (name == letter || name == word) major = static_cast<char>(letter[0] - 32);
  for (std::size_t i = 0; i < kCategories.size(); ++i)
    if (name == plain_name(kCategories[i].first) || name == kCategories[i].second) minor = static_cast<int>(i);
  if (!major && minor < 0) return std::nullopt;
  std::vector<CodePointSet::Range> ranges;
  for (auto const& [range, category] : category_runs())
    if (minor >= 0 ? category == minor : kCategories[category].first[0] == major) ranges.push_back(range);
  return CodePointSet(std::move(ranges));
}

// PCRE2 has the tables of scripts and binary properties that utf8proc lacks: it is asked about every code point.
std::optional<CodePointSet> pcre2_set(std::string const& property) {
  std::string const pattern = "\\p{" + property + "}+";
  int error = 0;
  PCRE2_SIZE offset = 0;
  std::unique_ptr<pcre2_code, void (*)(pcre2_code*)> const code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP, &error,
                    &offset, nullptr),
      pcre2_code_free);
  if (!code) return std::nullopt;
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without a JIT the interpreter serves
  std::string all;
  for (char32_t c = 0; c <= kLastCodePoint; ++c)
    if (c < 0xD800 || c > 0xDFFF) all += encode_utf8(c);
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> const data(pcre2_match_data_create(1, nullptr),
                                                                            pcre2_match_data_free);
  std::vector<CodePointSet::Range> ranges;
  std::string_view const text = all;
  for (PCRE2_SIZE at = 0; pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(all.data()), all.size(), at,
                                      PCRE2_NO_UTF_CHECK, data.get(), nullptr) > 0;) {
    PCRE2_SIZE const* bounds = pcre2_get_ovector_pointer(data.get());
    auto const point = [&](std::size_t begin) {
      return code_point(text.substr(begin, character_length(text.substr(begin))));
    };
    ranges.push_back({point(bounds[0]), point(previous_character(text, bounds[1]))});
    at = bounds[1];
  }
  return CodePointSet(std::move(ranges));
}

// What Unicode 15, 15.1 and 16 have added to scripts that patterns name.
std::optional<CodePointSet> script_set(std::string const& name) {
  for (char c : name)
    if ((c < 'a' || c > 'z') && (c < '0' || c > '9')) return std::nullopt;
  auto set = pcre2_set("sc:" + name);
  if (!set) return pcre2_set(name);
  if (name == "han") set = set->united(CodePointSet({{0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}}));
  if (name == "hiragana") set = set->united(CodePointSet({{0x1B132, 0x1B132}}));
  if (name == "katakana") set = set->united(CodePointSet({{0x1B155, 0x1B155}}));
  return set;
}

}  // namespace

CodePointSet CodePointSet::case_folded() const {
  std::vector<Range> all = ranges_;
  for (auto const& [f, forms] : case_forms())
    if (std::ranges::any_of(forms, [&](char32_t c) { return contains(c); }))
      for (char32_t c : forms) all.push_back({c, c});
  return CodePointSet(std::move(all));
}

CodePointSet const& space_set() {
  static CodePointSet const set = [] {
    std::vector<CodePointSet::Range> ranges;
    for (char32_t c = 0; c <= 0x3000; ++c)  // the last one
      if (is_space(c)) ranges.push_back({c, c});
    return CodePointSet(std::move(ranges));
  }();
  return set;
}

CodePointSet const& digit_set() {
  static CodePointSet const set = *category_set("nd");
  return set;
}

CodePointSet const& word_set() {
  static CodePointSet const set = category_set("l")
                                      ->united(*category_set("m"))
                                      .united(*category_set("nd"))
                                      .united(*category_set("nl"))
                                      .united(*category_set("pc"))
                                      .united(CodePointSet({{0xB2, 0xB3},  // an oddity of Oniguruma's table
                                                            {0xB9, 0xB9},
                                                            {0xBC, 0xBE},
                                                            {0x24B6, 0x24E9},  // letters in circles and squares
                                                            {0x1F130, 0x1F149},
                                                            {0x1F150, 0x1F169},
                                                            {0x1F170, 0x1F189}}));
  return set;
}

CodePointSet const& hex_digit_set() {
  static CodePointSet const set({{'0', '9'}, {'a', 'f'}, {'A', 'F'}});
  return set;
}

std::optional<CodePointSet> property_set(std::string_view written) {
  std::string const name = plain_name(written);
  CodePointSet const ascii({{0, 0x7F}});
  if (name == "any") return CodePointSet({{0, kLastCodePoint}});
  if (name == "ascii") return ascii;
  if (name == "assigned") return category_set("cn")->complement();
  if (name == "space" || name == "whitespace") return space_set();
  if (name == "digit") return digit_set();
  if (name == "word") return word_set();
  if (name == "xdigit") return hex_digit_set();
  if (name == "alnum") return property_set("alpha")->united(digit_set());
  if (name == "alpha" || name == "alphabetic")
    return category_set("l")->united(*category_set("nl")).united(*pcre2_set("alphabetic"));
  if (name == "upper") return pcre2_set("uppercase");
  if (name == "lower") return pcre2_set("lowercase");
  if (name == "lc") return category_set("lu")->united(*category_set("ll")).united(*category_set("lt"));
  if (name == "cntrl") return category_set("cc");
  if (name == "punct") return category_set("p");
  if (name == "blank") return category_set("zs")->united(CodePointSet({{'\t', '\t'}}));
  if (auto category = category_set(name)) return category;
  return script_set(name);
}

}  // namespace expertmesh
