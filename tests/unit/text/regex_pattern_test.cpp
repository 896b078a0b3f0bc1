// Split patterns: where they match, against the reference's engine, and how long that takes.
#include "coordinator/text/regex_pattern.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "tests/support/few_cases.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

// Matches and what is between them, but for empty parts.
std::vector<std::string> pieces(RegexPattern const& pattern, std::string const& text) {
  std::vector<RegexPattern::Match> matches;
  pattern.matches(text, matches);
  std::vector<std::string> found;
  std::size_t at = 0;
  auto const add = [&](std::size_t begin, std::size_t end) {
    if (end > begin) found.push_back(text.substr(begin, end - begin));
  };
  for (auto const& match : matches) {
    add(at, match.begin);
    add(match.begin, match.end);
    at = match.end;
  }
  add(at, text.size());
  return found;
}

TEST(RegexPattern, MatchesLikeTheReference) {
  Json const golden = Json::parse(std::ifstream(test::goldens_dir() / "text/patterns.json"));
  ASSERT_GT(golden["patterns"].size(), 40U);
  for (auto const& entry : golden["patterns"]) {
    RegexPattern const pattern(entry["pattern"].get<std::string>());
    for (std::size_t i = 0; i < golden["texts"].size(); ++i)
      EXPECT_EQ(pieces(pattern, golden["texts"][i].get<std::string>()),
                entry["pieces"][i].get<std::vector<std::string>>())
          << entry["pattern"] << " in " << golden["texts"][i];
  }
}

// A backtracking engine takes time quadratic in the text for the first ones, and exponential for the last.
TEST(RegexPattern, HostileTextsTakeLinearTime) {
  std::size_t const size = test::kLongText;
  struct Case {
    char const* pattern;
    std::string text;
    std::size_t pieces;
  };
  for (auto const& c :
       {Case{R"(\s+$)", std::string(size, ' ') + "a", 1}, Case{R"(a.*b|a)", std::string(size, 'a'), size},
        Case{R"(\s++$)", std::string(size, ' ') + "a", 1},
        Case{R"((?=(\d{3})+(?!\d)))", std::string(size, '1'), size / 3 + 1},
        Case{R"(b(?=b*c)|b)", std::string(size, 'b') + "c", size + 1},
        Case{R"((?:a|aa)+$)", std::string(size, 'a') + "b", 1}, Case{R"((?:a|a)*b)", std::string(size, 'a') + "c", 1},
        Case{R"((?:a?){60}c)", std::string(size, 'a'), 1}}) {
    EXPECT_EQ(pieces(RegexPattern(c.pattern), c.text).size(), c.pieces) << c.pattern;
  }
}

}  // namespace
}  // namespace expertmesh
