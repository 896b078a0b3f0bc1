#include "coordinator/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using Json = nlohmann::json;

TEST(StopMatcher, EveryGoldenCase) {
  Json const golden =
      Json::parse(std::ifstream(std::filesystem::path(EM_GOLDENS_DIR) / "text/stop_strings/golden.json"));
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

}  // namespace
}  // namespace expertmesh
