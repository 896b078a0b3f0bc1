// EM_SIMULATION_SEEDS: how many (default 2,000; the documented long form takes 100,000). EM_SIMULATION_FIRST: from
// which on (default 1), to run one again.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>

#include "common/base/log.h"
#include "tests/unit/cluster/simulated_cluster.h"

namespace expertmesh::test {
namespace {

class ClusterSimulation : public ::testing::Test {
 protected:
  ClusterSimulation() { spdlog::set_level(spdlog::level::off); }
  ~ClusterSimulation() override { spdlog::set_level(spdlog::level::info); }
};

TEST_F(ClusterSimulation, WhateverHappensNothingIsLost) {
  auto const number = [](char const* name, std::uint64_t otherwise) {
    char const* const text = std::getenv(name);
    return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
  };
  std::uint64_t const seeds = number("EM_SIMULATION_SEEDS", 2000);
  std::uint64_t const first = number("EM_SIMULATION_FIRST", 1);
  SimulatedCluster::Counts sums;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    SimulatedCluster cluster(seed, Mistake::none);
    cluster.run();
    ASSERT_EQ(cluster.failure(), "") << "seed " << seed;
    auto const& counts = cluster.counts();
    sums.events += counts.events;
    sums.crashes += counts.crashes;
    sums.stops += counts.stops;
    sums.lost_messages += counts.lost_messages;
    sums.joins += counts.joins;
    sums.drains += counts.drains;
    sums.requests += counts.requests;
    sums.moves += counts.moves;
    sums.late_words += counts.late_words;
  }
  std::cout << seeds << " seeds: " << sums.events << " events, " << sums.crashes << " crashes, " << sums.stops
            << " stops, " << sums.lost_messages << " messages lost, " << sums.joins << " joins from elsewhere, "
            << sums.drains << " drains, " << sums.moves << " placements, " << sums.requests << " requests, "
            << sums.late_words << " words of the dead\n";
  EXPECT_TRUE(seeds < 100 || sums.late_words > 0);
}

TEST_F(ClusterSimulation, ASeedGivesTheSameRunAgain) {
  for (std::uint64_t const seed : {7U, 19U, 23U}) {
    SimulatedCluster first(seed, Mistake::none);
    SimulatedCluster second(seed, Mistake::none);
    first.run();
    second.run();
    EXPECT_EQ(first.counts().events, second.counts().events);
    EXPECT_EQ(first.counts().requests, second.counts().requests);
  }
}

TEST_F(ClusterSimulation, EveryMistakeIsNoticed) {
  for (Mistake const mistake :
       {Mistake::commits_before_loaded, Mistake::believes_the_dead, Mistake::lets_go_too_early}) {
    std::size_t noticed = 0;
    for (std::uint64_t seed = 1; seed <= 200; ++seed) {
      SimulatedCluster cluster(seed, mistake);
      cluster.run();
      noticed += cluster.failure().empty() ? 0 : 1;
    }
    EXPECT_GT(noticed, 0U) << "mistake " << static_cast<int>(mistake);
    std::cout << "mistake " << static_cast<int>(mistake) << ": noticed in " << noticed << " of 200 runs\n";
  }
}

}  // namespace
}  // namespace expertmesh::test
