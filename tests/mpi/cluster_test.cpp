// Real worker processes: they give the bits of the experts in this process, and their deaths are noticed and survived.
#include "coordinator/cluster/cluster.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <iostream>
#include <thread>

#include "common/base/paths.h"
#include "common/base/task.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kExperts = 6;
constexpr std::size_t kPerToken = 3;
constexpr std::size_t kMaxTokens = 40;
constexpr std::uint64_t kSeed = 11;
constexpr RemoteExpertsLimits kLimits{.experts_per_token = kPerToken, .max_tokens = kMaxTokens};

ClusterOptions options(ExpertModelSpec const& model, std::size_t num_workers) {
  ClusterOptions out;
  out.num_workers = num_workers;
  out.worker_program = executable_dir() / "expertmesh-worker";
  out.load_format = LoadFormat::dummy;
  out.dummy_seed = kSeed;
  out.experts = model;
  out.experts_per_token = kPerToken;
  out.max_tokens_per_step = kMaxTokens;
  out.isa = std::string(name_of(Isa::scalar));
  return out;
}

Task exchange(FrameArena&, Experts& experts, std::uint32_t layer, MatrixView<float const> x, RoutingView routing,
              MatrixView<float> out) {
  auto const pending = experts.dispatch(layer, x, routing);
  co_await experts.combine(pending, out);
}

struct World {
  explicit World(DType dtype = DType::f32) : model(test::tiny_model(kExperts, dtype)) {}

  // One exchange of 40 tokens, the same for everyone. Throws what it throws.
  std::vector<float> run(Experts& experts, std::uint32_t layer) {
    std::mt19937 random(3);
    test::Routing const routing = test::random_routing(random, kMaxTokens, kExperts, kPerToken);
    auto const x = test::random_floats(random, kMaxTokens * hidden);
    std::vector<float> out(x.size());
    FrameArena arena(std::size_t{64} << 10);
    Task task = exchange(arena, experts, layer, {x.data(), kMaxTokens, hidden},
                         {routing.experts, routing.weights, kPerToken}, {out.data(), kMaxTokens, hidden});
    task.start();
    while (!task.done()) experts.progress();
    task.rethrow();
    return out;
  }

  ExpertModelSpec model;
  std::size_t hidden = model.layers[0].hidden;
  ThreadPool pool{2};
  Exec exec{Isa::scalar, pool, {.max_rows = kMaxTokens, .max_columns = 24}};
};

bool running(std::int64_t pid) {
  return ::kill(static_cast<pid_t>(pid), 0) == 0;
}

void wait_until_gone(std::int64_t pid) {
  auto const deadline = std::chrono::steady_clock::now() + 60s;
  while (running(pid) && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_FALSE(running(pid)) << "process " << pid << " is still there";
}

class MpiClusterOf : public ::testing::TestWithParam<DType> {};

TEST_P(MpiClusterOf, AnyNumberOfWorkersGivesTheBitsOfThisProcess) {
  World world(GetParam());
  auto const source = make_dummy_weights(kSeed);
  auto const local = make_local_experts(world.model, *source, kLimits, world.exec, [](std::size_t, std::size_t) {});
  auto const expected = world.run(*local, 3);

  // All are started before the first ends: see the CMakeLists.txt of this folder.
  std::vector<std::unique_ptr<Cluster>> clusters;
  for (std::size_t const num_workers : {1U, 2U, 3U, 5U}) {
    LoadProgress last;
    auto const on_progress = [&](LoadProgress const& progress) { last = progress; };
    clusters.push_back(Cluster::start(options(world.model, num_workers), on_progress, nullptr));
    clusters.back()->idle();
    EXPECT_EQ(last.loaded_bytes, last.total_bytes);
    EXPECT_EQ(last.total_bytes, clusters.back()->resident_bytes());
    EXPECT_EQ(clusters.back()->resident_bytes(), local->group().resident_bytes());
    EXPECT_EQ(clusters.back()->status().size(), num_workers);
  }
  for (auto const& cluster : clusters) {
    auto const experts = make_cluster_experts(*cluster, world.model, kLimits, world.exec);
    for (int round = 0; round < 10; ++round) {
      experts->wake();
      auto const seen = world.run(*experts, 3);
      if (round % 2 == 1) experts->idle();
      ASSERT_TRUE(test::same_bits(seen, expected)) << cluster->peers().size() << " workers";
    }
  }
  for (auto const& cluster : clusters) {
    auto const status = cluster->status();
    for (auto const& worker : status) {
      EXPECT_EQ(worker.state, WorkerState::serving) << worker.death_reason;
      EXPECT_EQ(worker.isa, "scalar");
      EXPECT_EQ(worker.transport, "mpi");
      EXPECT_TRUE(running(worker.pid));
    }
    cluster->shutdown();
    for (auto const& worker : cluster->status()) EXPECT_EQ(worker.state, WorkerState::left);
    for (auto const& worker : status) wait_until_gone(worker.pid);
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, MpiClusterOf, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

// What happens to a worker, and the time from there to the error.
std::chrono::milliseconds time_to_error(int signal) {
  World world;
  auto const cluster = Cluster::start(options(world.model, 3), nullptr, nullptr);
  auto const experts = make_cluster_experts(*cluster, world.model, kLimits, world.exec);
  world.run(*experts, 1);
  EXPECT_EQ(experts->missing(), "");
  auto const before = cluster->status();
  ::kill(static_cast<pid_t>(before[1].pid), signal);
  auto const begin = std::chrono::steady_clock::now();
  std::string error;
  while (error.empty()) {
    try {
      world.run(*experts, 1);
    } catch (ExpertsLost const& lost) {
      error = lost.what();
    }
  }
  auto const pause = std::chrono::steady_clock::now() - begin;
  EXPECT_NE(error.find("worker 2 is dead"), std::string::npos) << error;
  EXPECT_NE(experts->missing().find("2 of 6 in layers 1-3"), std::string::npos) << experts->missing();
  EXPECT_THROW(world.run(*experts, 3), ExpertsLost);
  EXPECT_EQ(cluster->status()[1].state, WorkerState::dead);
  EXPECT_EQ(cluster->status()[2].state, WorkerState::serving);
  wait_until_gone(before[1].pid);
  cluster->shutdown();
  for (auto const& worker : before) wait_until_gone(worker.pid);
  return std::chrono::duration_cast<std::chrono::milliseconds>(pause);
}

TEST(MpiCluster, AKilledWorkerIsNoticedAndTheOthersGoOn) {
  std::cout << "error " << time_to_error(SIGKILL).count() << " ms after the kill\n";
}

TEST(MpiCluster, AStoppedWorkerIsNoticedAndEnded) {
  std::cout << "error " << time_to_error(SIGSTOP).count() << " ms after the stop\n";
}

TEST(MpiCluster, WhatIsWrongWithTheModelIsSaidByTheWorkerThatFoundIt) {
  World world;
  ClusterOptions bad = options(world.model, 2);
  bad.load_format = LoadFormat::automatic;
  bad.model_dir = "/nonexistent/model";
  try {
    Cluster::start(bad, nullptr, nullptr);
    FAIL() << "a cluster without weights";
  } catch (std::exception const& error) {
    EXPECT_EQ(std::string(error.what()).find("worker "), 0U) << error.what();
    EXPECT_NE(std::string(error.what()).find("/nonexistent/model"), std::string::npos) << error.what();
  }
}

TEST(MpiCluster, AWorkerThatCannotRunTheProfileIsNamed) {
  World world;
  ClusterOptions bad = options(world.model, 1);
  bad.isa = "abacus";
  try {
    Cluster::start(bad, nullptr, nullptr);
    FAIL() << "a cluster on an abacus";
  } catch (ClusterError const& error) {
    EXPECT_EQ(std::string(error.what()), "worker 1: this processor cannot run 'abacus'");
  }
}

}  // namespace
}  // namespace expertmesh
