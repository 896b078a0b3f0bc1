// /metrics: names, values, and books that balance at every scrape.
#include "coordinator/observe/metrics.h"

#include <gtest/gtest.h>

#include <map>
#include <sstream>
#include <thread>

namespace expertmesh {
namespace {

// {name with labels: value}
std::map<std::string, double> scrape(Metrics const& metrics) {
  std::map<std::string, double> values;
  std::istringstream text(metrics.serialise());
  for (std::string line; std::getline(text, line);)
    if (!line.empty() && line[0] != '#')
      values[line.substr(0, line.rfind(' '))] = std::stod(line.substr(line.rfind(' ')));
  return values;
}

TEST(Metrics, CountsUnderTheirNames) {
  Metrics metrics({1, 3}, 2);
  metrics.count_prompt_tokens(5);
  metrics.count_generation_tokens(7);
  metrics.count_generation_tokens(1);
  metrics.set_kv_usage(0.25);
  metrics.count_http(200);
  metrics.count_http(404);
  metrics.count_http(404);
  metrics.count_prefixes(30, 16);
  metrics.count_worker_death();
  metrics.set_workers_serving(3);
  metrics.count_transport_bytes("mpi", 10, 20);
  metrics.observe_step(0.5, 4);
  metrics.observe_time_to_first_token(0.25);
  metrics.observe_inter_token(0.125);
  StageTimes stages;
  stages.begin();
  stages.end(Stage::router);
  metrics.count_stages(stages);
  metrics.count_stages(stages);
  StageSeconds floors{};
  floors[static_cast<std::size_t>(Stage::attention)] = 0.75;
  metrics.count_floors(floors);
  metrics.count_floors(floors);
  metrics.set_balance(1, {0.5, 1.5}, {3, 4}, 0.25, 0.125);
  auto const values = scrape(metrics);
  for (auto const& [name, value] : std::map<std::string, double>{
           {"prompt_tokens_total", 5},
           {"generation_tokens_total", 8},
           {"kv_cache_usage_perc", 0.25},
           {"prefix_cache_queries_total", 30},
           {"prefix_cache_hits_total", 16},
           {"http_requests_total{status=\"200\"}", 1},
           {"http_requests_total{status=\"404\"}", 2},
           {"worker_deaths_total", 1},
           {"workers_serving", 3},
           {"step_seconds_count", 1},
           {"step_seconds_sum", 0.5},
           {"step_tokens_total", 4},
           {"time_to_first_token_seconds_sum", 0.25},
           {"inter_token_latency_seconds_sum", 0.125},
           {"stage_seconds_total{stage=\"router\"}", 2 * stages[Stage::router]},
           {"stage_seconds_total{stage=\"lm_head\"}", 0},
           {"stage_floor_seconds_total{stage=\"attention\"}", 1.5},
           {"stage_floor_seconds_total{stage=\"router\"}", 0},
           {"importance_cv2{layer=\"3\"}", 0.25},
           {"load_cv2{layer=\"3\"}", 0.125},
           {"load_cv2{layer=\"1\"}", 0},
       }) {
    ASSERT_TRUE(values.contains("expertmesh:" + name)) << name << "\n" << metrics.serialise();
    EXPECT_EQ(values.at("expertmesh:" + name), value) << name;
  }
  double importance = 0;
  double load = 0;
  double bytes = 0;
  for (auto const& [name, value] : values) {
    if (name.starts_with("expertmesh:expert_importance{")) importance += value;
    if (name.starts_with("expertmesh:expert_load{")) load += value;
    if (name.starts_with("expertmesh:transport_bytes_total{")) bytes += value;
  }
  EXPECT_EQ(importance, 2);
  EXPECT_EQ(load, 7);
  EXPECT_EQ(bytes, 30);
}

TEST(Metrics, SaysTheSameToThoseWhoDraw) {
  Metrics metrics({1, 3}, 2);
  metrics.set_balance(1, {0.5, 1.5}, {3, 4}, 0.25, 0.125);
  auto const balance = metrics.balance();
  ASSERT_EQ(balance.size(), 2);
  EXPECT_EQ(balance[0].layer, 1);
  EXPECT_EQ(balance[0].load, std::vector<double>(2));
  EXPECT_EQ(balance[1].layer, 3);
  EXPECT_EQ(balance[1].importance, (std::vector<double>{0.5, 1.5}));
  EXPECT_EQ(balance[1].load, (std::vector<double>{3, 4}));
  EXPECT_EQ(balance[1].importance_cv2, 0.25);
  EXPECT_EQ(balance[1].load_cv2, 0.125);

  metrics.set_ledger({.accepted = 3, .queued = 1, .finished = 2});
  metrics.count_prompt_tokens(5);
  metrics.count_generation_tokens(7);
  metrics.observe_step(0.5, 4);
  metrics.observe_step(0.25, 1);
  metrics.observe_time_to_first_token(0.125);
  metrics.observe_inter_token(2);
  metrics.set_kv_usage(0.75);
  metrics.count_preemptions(4);
  metrics.count_worker_death();
  StageTimes stages;
  stages.begin();
  stages.end(Stage::router);
  metrics.count_stages(stages);
  StageSeconds floors{};
  floors[static_cast<std::size_t>(Stage::experts)] = 0.5;
  metrics.count_floors(floors);
  auto const now = metrics.activity();
  EXPECT_EQ(now.ledger.accepted, 3);
  EXPECT_EQ(now.ledger.queued, 1);
  EXPECT_EQ(now.prompt_tokens, 5);
  EXPECT_EQ(now.generation_tokens, 7);
  EXPECT_EQ(now.steps.count, 2);
  EXPECT_EQ(now.steps.seconds, 0.75);
  EXPECT_EQ(now.time_to_first_token.seconds, 0.125);
  EXPECT_EQ(now.inter_token.seconds, 2);
  EXPECT_EQ(now.kv_usage, 0.75);
  EXPECT_EQ(now.preemptions, 4);
  EXPECT_EQ(now.worker_deaths, 1);
  EXPECT_EQ(now.stages, stages.seconds());
  EXPECT_EQ(now.floors, floors);
  EXPECT_GE(metrics.activity().seconds, now.seconds);
}

TEST(Metrics, LabelsOfUnknownFieldsAreBoundedAndPlain) {
  Metrics metrics({}, 0);
  for (int i = 0; i < 1000; ++i) metrics.count_unknown_field("field_" + std::to_string(i));
  metrics.count_unknown_field("field_0");
  for (std::string const& odd :
       {std::string("a\nb"), std::string("\xff"), std::string(5000, 'a'), std::string("\0", 1), std::string()})
    metrics.count_unknown_field(odd);
  std::size_t series = 0;
  double sum = 0;
  auto const values = scrape(metrics);
  for (auto const& [name, value] : values)
    if (name.starts_with("expertmesh:unknown_request_fields_total{")) {
      ++series;
      sum += value;
    }
  EXPECT_LE(series, 65);
  EXPECT_EQ(sum, 1006);
  EXPECT_EQ(values.at("expertmesh:unknown_request_fields_total{field=\"field_0\"}"), 2);
}

TEST(Metrics, LedgerBalancesWhileItChanges) {
  Metrics metrics({}, 0);
  constexpr std::uint64_t kChanges = 2000;
  std::thread owner([&] {
    Metrics::Ledger ledger;
    for (std::uint64_t i = 0; i < kChanges; ++i) {
      ++ledger.accepted;
      ++ledger.queued;
      metrics.set_ledger(ledger);
      --ledger.queued;
      ++(i % 3 == 0 ? ledger.finished : i % 3 == 1 ? ledger.failed : ledger.cancelled);
      metrics.set_ledger(ledger);
    }
  });
  double accepted = 0;
  while (accepted < kChanges) {
    auto const values = scrape(metrics);
    auto const of = [&](char const* name) { return values.at(std::string("expertmesh:") + name); };
    accepted = of("requests_accepted_total");
    ASSERT_EQ(accepted, of("num_requests_waiting") + of("num_requests_running") + of("requests_finished_total") +
                            of("requests_failed_total") + of("requests_cancelled_total"));
  }
  owner.join();
  EXPECT_EQ(metrics.ledger().accepted, kChanges);
}

TEST(MetricsDeathTest, BooksThatDoNotBalanceAreABug) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(Metrics({}, 0).set_ledger({.accepted = 2, .running = 1}), "accepted 2");
}

}  // namespace
}  // namespace expertmesh
