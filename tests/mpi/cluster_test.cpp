// Real worker processes: they give the bits of the experts in this process, and their deaths are noticed and survived.
#include "coordinator/cluster/cluster.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "common/base/paths.h"
#include "common/base/task.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/mpi/mortal_faults.h"
#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kExperts = 6;
constexpr std::size_t kPerToken = 3;
constexpr std::size_t kMaxTokens = 40;
constexpr std::uint64_t kSeed = 11;
RemoteExpertsLimits const kLimits{.experts_per_token = kPerToken, .max_tokens = kMaxTokens};

ClusterOptions options(ExpertModelSpec const& model, std::size_t num_workers,
                       MessageTransport transport = MessageTransport::automatic) {
  ClusterOptions out;
  out.transport = transport;
  out.shared_cores = true;  // everybody sleeps
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
    while (!task.done()) {
      experts.progress();
      if (!task.done()) experts.pause(PollPause::sleep);
    }
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

char const* name_of(MessageTransport transport) {
  return transport == MessageTransport::mpi ? "mpi" : "shm";
}

class MpiClusterOf : public ::testing::TestWithParam<DType> {};

TEST_P(MpiClusterOf, AnyNumberOfWorkersGivesTheBitsOfThisProcess) {
  World world(GetParam());
  auto const source = make_dummy_weights(kSeed);
  auto const local = make_local_experts(world.model, *source, kLimits, world.exec, [](std::size_t, std::size_t) {});
  auto const expected = world.run(*local, 3);

  // All are started before the first ends: see the CMakeLists.txt of this folder.
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<char const*> transports;
  for (auto const& [num_workers, transport] :
       {std::pair(1U, MessageTransport::automatic), std::pair(2U, MessageTransport::mpi),
        std::pair(2U, MessageTransport::shm), std::pair(3U, MessageTransport::mpi),
        std::pair(5U, MessageTransport::automatic)}) {
    LoadProgress last;
    auto const on_progress = [&](LoadProgress const& progress) { last = progress; };
    transports.push_back(name_of(transport));
    clusters.push_back(Cluster::start(options(world.model, num_workers, transport), *source, on_progress, nullptr));
    clusters.back()->idle();
    EXPECT_EQ(last.loaded_bytes, last.total_bytes);
    EXPECT_EQ(last.total_bytes, clusters.back()->resident_bytes());
    EXPECT_EQ(clusters.back()->resident_bytes(), local->group().resident_bytes());
    EXPECT_EQ(clusters.back()->status().size(), num_workers);
  }
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    auto const& cluster = clusters[i];
    auto const experts = make_cluster_experts(*cluster, world.model, *source, kLimits, world.exec);
    for (int round = 0; round < 10; ++round) {
      experts->wake();
      auto const seen = world.run(*experts, 3);
      if (round % 2 == 1) experts->idle();
      ASSERT_TRUE(test::same_bits(seen, expected)) << cluster->members().size() << " workers";
    }
    auto const& traffic = experts->traffic();
    bool const by_shm = transports[i] != std::string("mpi");
    EXPECT_GT(traffic.bytes_sent, 0U);
    EXPECT_EQ(traffic.shm_bytes_sent, by_shm ? traffic.bytes_sent : 0U);
    EXPECT_EQ(traffic.shm_bytes_received, by_shm ? traffic.bytes_received : 0U);
  }
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    auto const& cluster = clusters[i];
    auto const status = cluster->status();
    for (auto const& worker : status) {
      EXPECT_EQ(worker.state, WorkerState::serving) << worker.death_reason;
      EXPECT_EQ(worker.isa, "scalar");
      EXPECT_EQ(worker.transport, transports[i]);
      EXPECT_EQ(worker.row_transport, transports[i]);
      EXPECT_TRUE(running(worker.pid));
    }
    cluster->shutdown();
    for (auto const& worker : cluster->status()) EXPECT_EQ(worker.state, WorkerState::left);
    for (auto const& worker : status) wait_until_gone(worker.pid);
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, MpiClusterOf, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

class MpiClusterBy : public ::testing::TestWithParam<MessageTransport> {};
INSTANTIATE_TEST_SUITE_P(Transports, MpiClusterBy, ::testing::Values(MessageTransport::mpi, MessageTransport::shm),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

// Again and again: something happens to a worker, nothing to the rows, and the worker is there again.
void replace_ten_times(int signal, MessageTransport transport) {
  World world;
  auto const source = make_dummy_weights(kSeed);
  auto const cluster = Cluster::start(options(world.model, 3, transport), *source, nullptr, nullptr);
  auto const experts = make_cluster_experts(*cluster, world.model, *source, kLimits, world.exec);
  auto const expected = world.run(*experts, 1);
  std::vector<std::int64_t> pids;
  for (auto const& worker : cluster->status()) pids.push_back(worker.pid);
  for (std::uint32_t round = 1; round <= 10; ++round) {
    std::size_t const index = round % 3;
    auto const victim = cluster->status()[index];
    ASSERT_EQ(::kill(static_cast<pid_t>(victim.pid), signal), 0);
    auto const serves_again = [&] {
      auto const now = cluster->status()[index];
      return now.incarnation > victim.incarnation && now.state == WorkerState::serving;
    };
    auto const deadline = std::chrono::steady_clock::now() + 60s;
    do {
      ASSERT_TRUE(test::same_bits(world.run(*experts, 1), expected)) << "round " << round;
    } while (!serves_again() && std::chrono::steady_clock::now() < deadline);
    ASSERT_TRUE(serves_again()) << "round " << round;
    ASSERT_FALSE(cluster->status()[index].death_reason.empty());
    // A busy machine may have cost another worker its life meanwhile: only when all serve there is nothing left to do
    // here.
    auto const lives = [&] {
      std::vector<std::pair<Incarnation, WorkerState>> out;
      for (auto const& worker : cluster->status()) out.emplace_back(worker.incarnation, worker.state);
      return out;
    };
    for (bool undisturbed = false; !undisturbed;) {
      auto const before = lives();
      auto const own_rows = experts->recoveries().own.rows;
      ASSERT_TRUE(test::same_bits(world.run(*experts, 1), expected));
      undisturbed = lives() == before &&
                    std::ranges::all_of(before, [](auto const& life) { return life.second == WorkerState::serving; });
      if (undisturbed) {
        EXPECT_EQ(experts->recoveries().own.rows, own_rows) << "worker " << index + 1 << " is not used again";
      }
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    }
    pids.push_back(cluster->status()[index].pid);
    wait_until_gone(victim.pid);
  }
  auto const recoveries = experts->recoveries();
  std::cout << recoveries.exchanges << " exchanges met a death, " << recoveries.seconds * 1e3 << " ms together\n";
  cluster->shutdown();
  for (std::int64_t const pid : pids) wait_until_gone(pid);
}

TEST_P(MpiClusterBy, AKilledWorkerIsReplacedAndNobodyNotices) {
  replace_ten_times(SIGKILL, GetParam());
}

TEST_P(MpiClusterBy, AStoppedWorkerIsReplacedAndNobodyNotices) {
  replace_ten_times(SIGSTOP, GetParam());
}

// EM_FAULT_ROUNDS: deaths at each point (default 1; the documented long form takes 20).
TEST_P(MpiClusterBy, MortalWorkersMayFailAtAnyPoint) {
  char const* const wanted = std::getenv("EM_FAULT_ROUNDS");
  int const rounds = wanted != nullptr ? std::atoi(wanted) : 1;
  World world;
  auto const source = make_dummy_weights(kSeed);
  ClusterOptions mortal = options(world.model, 3, GetParam());
  mortal.worker_program = executable_dir() / "mpi_mortal_worker";
  // A process that dies before it says hello is missed at this deadline only.
  mortal.rejoin_timeout = 2s;
  auto const cluster = Cluster::start(mortal, *source, nullptr, nullptr);
  auto const experts = make_cluster_experts(*cluster, world.model, *source, kLimits, world.exec);
  auto const local = make_local_experts(world.model, *source, kLimits, world.exec, [](std::size_t, std::size_t) {});
  auto const expected = world.run(*local, 1);
  std::vector<int> serving(kServingFaults);
  std::vector<int> start(kStartFaults);
  std::vector<std::uint32_t> counted(3);  // lives of each worker that are over
  auto const deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60 + 60 * rounds);
  while (std::ranges::min(serving) < rounds || std::ranges::min(start) < rounds) {
    ASSERT_TRUE(test::same_bits(world.run(*experts, 1), expected));
    ASSERT_LT(std::chrono::steady_clock::now(), deadline)
        << ::testing::PrintToString(serving) << ::testing::PrintToString(start);
    for (auto const& worker : cluster->status()) {
      std::uint32_t const id = worker.id.value();
      ASSERT_TRUE(worker.incarnation.value() <= counted[id - 1] + 2) << "a life went by unseen";
      for (std::uint32_t& over = counted[id - 1]; over + 1 < worker.incarnation.value();) {
        ++over;
        if (over % 2 == 1)
          ++serving[static_cast<std::size_t>(serving_fault(id, over).first)];
        else
          ++start[static_cast<std::size_t>(start_fault(id, over))];
      }
    }
  }
  auto const recoveries = experts->recoveries();
  std::cout << "deaths at each point: serving " << ::testing::PrintToString(serving) << ", starting "
            << ::testing::PrintToString(start) << "; " << recoveries.exchanges << " exchanges met one, "
            << recoveries.seconds * 1e3 << " ms together\n";
  EXPECT_EQ(recoveries.quarantined_bytes, 0U);
}

TEST(MpiCluster, AStrangerToTheMemoryIsReachedByMpi) {
  World world;
  auto const source = make_dummy_weights(kSeed);
  ClusterOptions strange = options(world.model, 2);
  strange.worker_program = executable_dir() / "mpi_stranger_worker";
  auto const cluster = Cluster::start(strange, *source, nullptr, nullptr);
  auto const experts = make_cluster_experts(*cluster, world.model, *source, kLimits, world.exec);
  auto const local = make_local_experts(world.model, *source, kLimits, world.exec, [](std::size_t, std::size_t) {});
  EXPECT_TRUE(test::same_bits(world.run(*experts, 1), world.run(*local, 1)));
  EXPECT_EQ(experts->traffic().shm_bytes_sent, 0U);
  for (auto const& worker : cluster->status())
    EXPECT_EQ(worker.transport.find("mpi (open: No such file or directory"), 0U) << worker.transport;

  // Where it has to be shared memory, such a worker is none.
  strange.transport = MessageTransport::shm;
  try {
    Cluster::start(strange, *source, nullptr, nullptr);
    FAIL() << "messages by MPI";
  } catch (ClusterError const& error) {
    EXPECT_NE(std::string(error.what()).find("(--transport shm): mpi (open: "), std::string::npos) << error.what();
  }
}

TEST(MpiCluster, WhatIsWrongWithTheModelIsSaidByTheWorkerThatFoundIt) {
  World world;
  ClusterOptions bad = options(world.model, 2);
  bad.load_format = LoadFormat::automatic;
  auto const folder = std::filesystem::temp_directory_path() / ("expertmesh-no-weights-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  std::ofstream(folder / "config.json") << "{}";
  bad.model_dir = folder;
  try {
    Cluster::start(bad, *make_dummy_weights(kSeed), nullptr, nullptr);
    FAIL() << "a cluster without weights";
  } catch (std::exception const& error) {
    EXPECT_EQ(std::string(error.what()).find("worker "), 0U) << error.what();
    EXPECT_NE(std::string(error.what()).find(folder.string()), std::string::npos) << error.what();
  }
}

TEST(MpiCluster, AWorkerThatCannotRunTheProfileIsNamed) {
  World world;
  ClusterOptions bad = options(world.model, 1);
  bad.isa = "abacus";
  try {
    Cluster::start(bad, *make_dummy_weights(kSeed), nullptr, nullptr);
    FAIL() << "a cluster on an abacus";
  } catch (ClusterError const& error) {
    EXPECT_EQ(std::string(error.what()), "worker 1: refused: cannot run 'abacus', the numerics profile");
  }
}

}  // namespace
}  // namespace expertmesh
