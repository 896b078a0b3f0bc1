// The file of --trace: what a viewer finds in it, when it ends, and what is refused.
#include "coordinator/observe/trace.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/base/error.h"
#include "coordinator/observe/trace_json.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

StageTraced stage(std::uint64_t step) {
  return {.span = {.begin_ns = 2'001, .end_ns = 3'500}, .step = step, .stage = Stage::router, .layer = 4};
}

// ---- lanes

TEST(TraceLane, GivesBackInOrderWhatHadRoom) {
  TraceLane lane(3);
  std::vector<std::uint64_t> seen;
  auto const take = [&](TraceEvent const& event) { seen.push_back(std::get<StageTraced>(event).step); };
  for (std::uint64_t round = 0; round < 3; ++round) {
    for (std::uint64_t i = 0; i < 5; ++i) lane.put(stage(10 * round + i));
    lane.drain(take);
  }
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{0, 1, 2, 10, 11, 12, 20, 21, 22}));
  EXPECT_EQ(lane.num_lost(), 6U);
  lane.close();
  lane.put(stage(30));
  lane.drain(take);
  EXPECT_EQ(seen.size(), 9U);
  EXPECT_EQ(lane.num_lost(), 6U);
}

TEST(TraceLane, LosesNothingElseBetweenTwoThreads) {
  constexpr std::uint64_t kEvents = 200'000;
  TraceLane lane(64);
  std::thread writer([&] {
    for (std::uint64_t i = 1; i <= kEvents; ++i) lane.put(stage(i));
  });
  std::uint64_t last = 0;
  std::uint64_t seen = 0;
  bool in_order = true;
  auto const take = [&](TraceEvent const& event) {
    std::uint64_t const step = std::get<StageTraced>(event).step;
    in_order = in_order && step > last;
    last = step;
    ++seen;
  };
  while (seen + lane.num_lost() < kEvents) lane.drain(take);
  writer.join();
  lane.drain(take);
  EXPECT_TRUE(in_order);
  EXPECT_EQ(seen + lane.num_lost(), kEvents);
}

// ---- what a viewer finds

// Of one event, without the lines that name processes and threads.
std::vector<Json> events_of(TraceEvent const& event) {
  TraceJson json(1'000);
  std::string text = "[";
  json.add(event, text);
  text.erase(text.rfind(','));
  std::vector<Json> out;
  for (Json const& e : Json::parse(text + "]"))
    if (e["ph"] != "M") out.push_back(e);
  return out;
}

TEST(TraceJson, StepsAndStagesAreSpansOfTheEngine) {
  auto const steps = events_of(StepTraced{.span = {.begin_ns = 1'000, .end_ns = 1'001'007},
                                          .step = 9,
                                          .failed = true,
                                          .tokens = 5,
                                          .decodes = 3,
                                          .sequences = 4});
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0], Json::parse(R"({"ph":"X","pid":1,"tid":1,"ts":0.0,"dur":1000.007,"cat":"step","name":"mixed step",
      "args":{"step":9,"tokens":5,"decodes":3,"sequences":4,"failed":true}})"));
  EXPECT_EQ(events_of(StepTraced{.tokens = 3, .decodes = 3})[0]["name"], "decode step");
  EXPECT_EQ(events_of(StepTraced{.tokens = 3, .decodes = 0})[0]["name"], "prefill step");
  EXPECT_EQ(events_of(StepTraced{.encoder = true, .tokens = 3})[0]["name"], "encode step");
  EXPECT_EQ(events_of(stage(7))[0], Json::parse(R"({"ph":"X","pid":1,"tid":1,"ts":1.001,"dur":1.499,"cat":"stage",
      "name":"router","args":{"step":7,"layer":4}})"));
  EXPECT_FALSE(events_of(StageTraced{.stage = Stage::sampling})[0]["args"].contains("layer"));
}

TEST(TraceJson, AnExchangeIsATrackOfItsWorkerAndTheWorkASpan) {
  auto const exchange = events_of(ExchangeTraced{.span = {.begin_ns = 3'000, .end_ns = 5'000},
                                                 .worker = 2,
                                                 .incarnation = 3,
                                                 .attempt = 77,
                                                 .layer = 6,
                                                 .entries = 8,
                                                 .answered = false});
  ASSERT_EQ(exchange.size(), 2U);
  EXPECT_EQ(exchange[0], Json::parse(R"({"ph":"b","pid":3,"tid":3,"ts":2.0,"cat":"exchange","id":"2.77",
      "name":"exchange","args":{"layer":6,"entries":8}})"));
  EXPECT_EQ(exchange[1], Json::parse(R"({"ph":"e","pid":3,"tid":3,"ts":4.0,"cat":"exchange","id":"2.77",
      "name":"exchange","args":{"answered":false}})"));
  auto const work = events_of(ComputeTraced{.span = {.begin_ns = 3'500, .end_ns = 4'000},
                                            .offset_ns = -1'234'567,
                                            .uncertainty_ns = 42,
                                            .worker = 2,
                                            .incarnation = 3,
                                            .attempt = 77,
                                            .layer = 6,
                                            .entries = 8});
  ASSERT_EQ(work.size(), 1U);
  EXPECT_EQ(work[0], Json::parse(R"({"ph":"X","pid":3,"tid":3,"ts":2.5,"dur":0.5,"cat":"compute","name":"experts",
      "args":{"layer":6,"entries":8,"exchange":"2.77","offset_us":-1234.567,"uncertainty_us":0.042}})"));
}

TEST(TraceJson, ARequestIsATrackWithTheServersNameForIt) {
  using Part = RequestTraced::Part;
  std::string const id = "cmpl-\"\\\x01\xff";
  auto const added = events_of(RequestTraced{.when_ns = 1'000,
                                             .sequence = 12,
                                             .before = Part::over,
                                             .now = Part::queued,
                                             .prompt_tokens = 5,
                                             .request_id = decltype(RequestTraced::request_id)(id)});
  ASSERT_EQ(added.size(), 2U);
  EXPECT_EQ(added[0], Json::parse(R"({"ph":"b","pid":1,"tid":1,"ts":0.0,"cat":"request","id":"12","name":"request",
      "args":{"request_id":"cmpl-\"\\??","prompt_tokens":5}})"));
  EXPECT_EQ(added[1]["name"], "queued");
  EXPECT_EQ(added[1]["ph"], "b");
  auto const ended = events_of(
      RequestTraced{.sequence = 12, .before = Part::decode, .now = Part::over, .good = false, .answer_tokens = 6});
  ASSERT_EQ(ended.size(), 2U);
  EXPECT_EQ(ended[0]["name"], "decode");
  EXPECT_EQ(ended[0]["ph"], "e");
  EXPECT_EQ(ended[1]["name"], "request");
  EXPECT_EQ(ended[1]["ph"], "e");
  EXPECT_EQ(ended[1]["args"], Json::parse(R"({"request_id":"","finished":false,"answer_tokens":6})"));
}

TEST(TraceJson, AWorkersDeathIsAnInstant) {
  auto const death = events_of(WorkerTraced{.when_ns = 9'000,
                                            .worker = 2,
                                            .incarnation = 1,
                                            .change = WorkerTraced::Change::died,
                                            .reason = decltype(WorkerTraced::reason)("gone\n")});
  ASSERT_EQ(death.size(), 1U);
  EXPECT_EQ(death[0], Json::parse(R"({"ph":"i","pid":3,"tid":1,"ts":8.0,"s":"g","cat":"worker","name":"worker 2 died",
      "args":{"worker":2,"incarnation":1,"reason":"gone?"}})"));
}

TEST(TraceJson, EachLifeOfAWorkerIsNamedOnce) {
  TraceJson json(0);
  std::string text;
  for (std::uint32_t const life : {1U, 1U, 2U, 1U, 2U}) json.add(ComputeTraced{.worker = 1, .incarnation = life}, text);
  std::size_t processes = 0;
  std::size_t threads = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("process_name") != std::string::npos) ++processes;
    if (line.find("thread_name") != std::string::npos) ++threads;
  }
  EXPECT_EQ(processes, 1U);
  EXPECT_EQ(threads, 2U);
}

TEST(TraceText, TakesWhatHasRoom) {
  EXPECT_EQ(TraceText<4>("abcdef").view(), "abcd");
  EXPECT_EQ(TraceText<4>("ab").view(), "ab");
  EXPECT_EQ(TraceText<4>().view(), "");
}

// ---- the file

struct TraceFile : ::testing::Test {
  TraceFile() {
    std::string name = ::testing::TempDir() + "/trace-XXXXXX";
    folder = mkdtemp(name.data());
    file = folder / "trace.json";
  }
  ~TraceFile() override { std::filesystem::remove_all(folder); }

  [[nodiscard]] std::string text() const {
    std::ostringstream out;
    out << std::ifstream(file).rdbuf();
    return out.str();
  }
  [[nodiscard]] static std::size_t stages_in(Json const& events) {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [](Json const& e) { return e.value("cat", "") == "stage"; }));
  }
  // What starting says against it; empty: nothing.
  [[nodiscard]] static std::string refusal(std::filesystem::path const& path) {
    try {
      Trace const trace({.file = path});
    } catch (ModelError const& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder;
  std::filesystem::path file;
};

TEST_F(TraceFile, HasAllThatWasPutFromAllThreads) {
  std::ofstream(file) << "what was here before";
  {
    Trace trace({.file = file});
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t)
      threads.emplace_back([&lane = trace.new_lane()] {
        for (std::uint64_t i = 0; i < 1000; ++i) lane.put(stage(i));
      });
    for (auto& thread : threads) thread.join();
  }
  Json const events = Json::parse(text());
  EXPECT_EQ(stages_in(events), 3000U);
  EXPECT_EQ(events.back()["name"], "trace ends: the server ends");
}

TEST_F(TraceFile, WithoutItsEndIsReadWithABracket) {
  Trace trace({.file = file});
  trace.new_lane().put(stage(1));
  std::string written;
  while (written.find("\"stage\"") == std::string::npos) written = text();  // by a thread that looks for it
  ASSERT_EQ(written.substr(written.size() - 2), ",\n");
  EXPECT_EQ(stages_in(Json::parse(written.substr(0, written.size() - 2) + "]")), 1U);
}

TEST_F(TraceFile, StopsAtItsLimitAndIsWholeThen) {
  constexpr std::size_t kLimit = 20'000;
  {
    Trace trace({.file = file, .most_bytes = kLimit});
    TraceLane& lane = trace.new_lane();
    TraceLane& other = trace.new_lane();
    while (text().find("trace ends") == std::string::npos) {
      lane.put(stage(1));
      other.put(stage(2));
    }
    trace.new_lane().put(stage(3));
  }
  Json const events = Json::parse(text());
  EXPECT_EQ(events.back()["name"], "trace ends: --trace-limit");
  EXPECT_LE(text().size(), kLimit);
  EXPECT_GE(text().size(), kLimit - 1000);
}

TEST_F(TraceFile, IsRefusedByNameWhereItCannotBeWritten) {
  for (auto const& path : {folder / "nowhere" / "trace.json", folder, std::filesystem::path("/dev/full")}) {
    std::string const why = refusal(path);
    EXPECT_NE(why.find("--trace " + path.string() + ": cannot be written: "), std::string::npos) << why;
  }
  EXPECT_EQ(refusal(file), "");
}

}  // namespace
}  // namespace expertmesh
