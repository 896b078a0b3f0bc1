#include "coordinator/text/stop_matcher.h"
#include "tests/support/goldens_dir.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace expertmesh {
namespace {

using Json = nlohmann::json;

TEST(StopMatcher, EveryGoldenCase) {
  Json const golden = Json::parse(std::ifstream(test::goldens_dir() / "text/stop_strings/golden.json"));
  ASSERT_GT(golden["cases"].size(), 20U);
  for (auto const& c : golden["cases"]) {
    StopMatcher matcher(c["stop"].get<std::vector<std::string>>(), c["include_stop_str_in_output"]);
    std::vector<std::string> emitted;
    for (auto const& piece : c["pieces"]) {
      emitted.push_back(matcher.push(piece.get<std::string>()));
      if (matcher.stopped()) break;
    }
    std::size_t const used = emitted.size();
    if (!matcher.stopped()) emitted.push_back(matcher.finish());
    EXPECT_EQ(emitted, c["emitted"].get<std::vector<std::string>>()) << c;
    EXPECT_EQ(matcher.stopped().has_value(), c["finish_reason"] == "stop") << c;
    if (matcher.stopped()) {
      EXPECT_EQ(*matcher.stopped(), c["stop_reason"].get<std::string>()) << c;
    }
    EXPECT_EQ(used, c["pieces_used"].get<std::size_t>()) << c;
  }
}

// Against a slow oracle that knows the text: where the first stop string ends, and how much may be out after each
// piece.
TEST(StopMatcher, RandomTextsInRandomPieces) {
  std::mt19937 random(3);
  auto const text_of = [&](std::size_t most) {
    std::string text(random() % (most + 1), 'a');
    for (char& c : text) c = "abc"[random() % 3];
    return text;
  };
  std::size_t num_stopped = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string const text = text_of(40);
    std::vector<std::string> stops(random() % 4);
    for (auto& stop : stops) stop = text_of(5);
    bool const include = random() % 2 == 0;

    std::string met;
    std::size_t end = 1;  // of the text seen when a stop string is met
    for (; end <= text.size() && met.empty(); ++end)
      for (auto const& stop : stops)
        if (text.substr(0, end).ends_with(stop) && stop.size() > met.size()) met = stop;
    --end;

    StopMatcher matcher(stops, include);
    std::string out;
    for (std::size_t seen = 0; seen < text.size() && !matcher.stopped();) {
      std::size_t const size = 1 + random() % 7;
      out += matcher.push(text.substr(seen, size));
      seen = std::min(text.size(), seen + size);
      if (matcher.stopped()) break;
      std::size_t held = 0;  // the longest end of it that may become a stop string
      for (auto const& stop : stops)
        for (std::size_t n = 1; n < stop.size(); ++n)
          if (text.substr(0, seen).ends_with(stop.substr(0, n))) held = std::max(held, n);
      ASSERT_EQ(out, text.substr(0, seen - held)) << text;
    }
    if (!matcher.stopped()) out += matcher.finish();
    ASSERT_EQ(matcher.stopped().value_or(""), met) << text;
    ASSERT_EQ(out, met.empty() ? text : text.substr(0, include ? end : end - met.size())) << text;
    num_stopped += met.empty() ? 0 : 1;
  }
  EXPECT_GT(num_stopped, 1000U);
}

}  // namespace
}  // namespace expertmesh
