// The requests of a load test are a function of the seed, and what the options ask for.
#include "coordinator/bench/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace expertmesh {
namespace {

constexpr WorkloadOptions kOptions{.num_prompts = 2000,
                                   .request_rate = 50,
                                   .input_len = {3, 9},
                                   .output_len = {2, 5},
                                   .vocab = 17,
                                   .disconnect_share = 0.25,
                                   .seed = 7};

TEST(Workload, TheSameSeedGivesTheSameRequests) {
  auto const a = plan_workload(kOptions);
  auto const b = plan_workload(kOptions);
  WorkloadOptions other = kOptions;
  other.seed = 8;
  auto const c = plan_workload(other);
  bool prompts_differ = false;
  bool arrivals_differ = false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].arrival_s, b[i].arrival_s);
    EXPECT_EQ(a[i].prompt, b[i].prompt);
    EXPECT_EQ(a[i].output_len, b[i].output_len);
    EXPECT_EQ(a[i].disconnect_after, b[i].disconnect_after);
    prompts_differ = prompts_differ || a[i].prompt != c[i].prompt;
    arrivals_differ = arrivals_differ || a[i].arrival_s != c[i].arrival_s;
  }
  EXPECT_TRUE(prompts_differ);
  EXPECT_TRUE(arrivals_differ);
}

TEST(Workload, ArrivesAsAPoissonProcess) {
  auto const requests = plan_workload(kOptions);
  EXPECT_EQ(requests.front().arrival_s, 0);
  EXPECT_TRUE(std::ranges::is_sorted(requests, {}, &PlannedRequest::arrival_s));
  // The sum of n exponential gaps of mean 1/50 has a standard deviation of sqrt(n)/50: five of them around the mean.
  double const gaps = static_cast<double>(requests.size() - 1);
  EXPECT_NEAR(requests.back().arrival_s, gaps / 50, 5 * std::sqrt(gaps) / 50);
  std::size_t short_gaps = 0;  // below the mean: 1 - 1/e of an exponential distribution
  for (std::size_t i = 1; i < requests.size(); ++i)
    short_gaps += requests[i].arrival_s - requests[i - 1].arrival_s < 1.0 / 50 ? 1 : 0;
  EXPECT_NEAR(static_cast<double>(short_gaps) / gaps, 1 - std::exp(-1.0), 0.06);
}

TEST(Workload, AnInfiniteRateIsAllAtOnce) {
  for (auto const& request : plan_workload({.num_prompts = 10, .seed = 1})) EXPECT_EQ(request.arrival_s, 0);
}

TEST(Workload, StaysWithinItsLimits) {
  std::size_t leave = 0;
  std::size_t shortest = 9;
  std::size_t longest = 3;
  for (auto const& request : plan_workload(kOptions)) {
    shortest = std::min(shortest, request.prompt.size());
    longest = std::max(longest, request.prompt.size());
    for (TokenId id : request.prompt) EXPECT_LT(id, 17);
    EXPECT_GE(request.output_len, 2U);
    EXPECT_LE(request.output_len, 5U);
    if (!request.disconnect_after) continue;
    ++leave;
    EXPECT_GE(*request.disconnect_after, 1U);
    EXPECT_LT(*request.disconnect_after, request.output_len);
  }
  EXPECT_EQ(shortest, 3U);
  EXPECT_EQ(longest, 9U);
  EXPECT_NEAR(static_cast<double>(leave), 500, 100);
}

}  // namespace
}  // namespace expertmesh
