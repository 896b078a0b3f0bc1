#include "common/protocol/cluster_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/error.h"

namespace expertmesh {
namespace {

using nlohmann::json;

json sample() {
  return json::parse(R"({
    "interface": "eth0",
    "control_port": 7171,
    "secret_file": "/etc/expertmesh/secret",
    "coordinator": {"host": "a", "address": "10.0.0.1", "device": "cuda:0", "gpu_memory_utilization": 0.8},
    "workers": [
      {"host": "a", "devices": ["cuda:1", "cuda:2"]},
      {"host": "b", "threads": 4, "count": 2, "capacity": 20.5},
      {"host": "b", "devices": ["cuda:0"]}
    ]
  })");
}

std::vector<int> cores_from(int first, int end) {
  std::vector<int> cores;
  for (int core = first; core < end; ++core) cores.push_back(core);
  return cores;
}
HostCores const kCores{.topology = {.nodes = {{.index = 0, .cores = cores_from(0, 12)}}}, .usable = 12};

class ClusterFileTest : public ::testing::Test {
 protected:
  ~ClusterFileTest() override { std::filesystem::remove(path_); }
  ClusterFile read(json const& object) {
    std::ofstream(path_) << object.dump();
    return read_cluster_file(path_);
  }
  // Without the file's name in front of it.
  template <class Change>
  std::string error_after(Change change) {
    json object = sample();
    change(object);
    try {
      read(object);
    } catch (ModelError const& error) {
      std::string const what = error.what();
      return what.starts_with(path_.string()) ? what.substr(path_.string().size()) : "without the file: " + what;
    }
    return "";
  }

  std::filesystem::path const path_ =
      std::filesystem::temp_directory_path() / ("expertmesh-cluster-" + std::to_string(getpid()) + ".json");
};

TEST_F(ClusterFileTest, SaysWhoRunsWhere) {
  ClusterFile const cluster = read(sample());
  EXPECT_EQ(cluster.interface, "eth0");
  EXPECT_EQ(cluster.control_port, 7171);
  EXPECT_EQ(cluster.secret_file, "/etc/expertmesh/secret");
  EXPECT_EQ(cluster.coordinator.device, "cuda:0");
  EXPECT_FLOAT_EQ(static_cast<float>(cluster.coordinator.gpu_memory_utilization), 0.8F);
  ASSERT_EQ(cluster.workers.size(), 5U);
  auto const here = cluster.of_host("a");
  ASSERT_EQ(here.size(), 2U);
  EXPECT_EQ(here[1].device, "cuda:2");
  EXPECT_EQ(here[1].threads, 0U);
  auto const there = worker_arguments(cluster, "b", kCores);
  ASSERT_EQ(there.size(), 3U);
  EXPECT_EQ(there[0], (std::vector<std::string>{"--join", "10.0.0.1:7171", "--secret-file", "/etc/expertmesh/secret",
                                                "--device", "cpu", "--threads", "4", "--capacity", "20.500000"}));
  EXPECT_EQ(there[1], there[0]);
  EXPECT_EQ(there[2], (std::vector<std::string>{"--join", "10.0.0.1:7171", "--secret-file", "/etc/expertmesh/secret",
                                                "--device", "cuda:0", "--threads", "4"}))
      << "a third of the cores";
  EXPECT_THROW(worker_arguments(cluster, "c", kCores), ModelError);
  EXPECT_THROW(worker_arguments(cluster, "a", kCores), ModelError) << "the coordinator's";
}

TEST_F(ClusterFileTest, WorkersOfSeveralNumaNodesShareTheCores) {
  HostCores two{
      .topology = {.nodes = {{.index = 0, .cores = cores_from(0, 8)}, {.index = 1, .cores = cores_from(8, 16)}}},
      .usable = 16};
  auto const cores_of = [&](HostCores const& cores) {
    std::vector<std::string> all;
    for (auto const& arguments : worker_arguments(read(sample()), "b", cores)) {
      auto const at = std::ranges::find(arguments, "--cores");
      all.push_back(at == arguments.end() ? "any" : *(at + 1));
    }
    return all;
  };
  // Threads: 4, 4 and a third of the cores.
  EXPECT_EQ(cores_of(two), (std::vector<std::string>{"0,1,2,3", "4,5,6,7,8", "9,10,11,12,13,14,15"}));
  EXPECT_EQ(cores_of(kCores), std::vector<std::string>(3, "any"));
  two.topology.nodes[1].cores.resize(4);
  EXPECT_EQ(cores_of(two), std::vector<std::string>(3, "any")) << "more threads than cores";
}

TEST_F(ClusterFileTest, EveryFieldIsUsedOrRefused) {
  for (char const* object : {"", "/coordinator", "/workers/0"})
    EXPECT_NE(error_after([&](json& j) { j[json::json_pointer(object)]["colour"] = 1; }).find(".colour: unknown field"),
              std::string::npos)
        << object;
  auto const wrong = [&](char const* pointer, json const& value) {
    return error_after([&](json& j) { j[json::json_pointer(pointer)] = value; });
  };
  EXPECT_EQ(wrong("/workers/0/host", 1), ".workers[0].host: not a string");
  EXPECT_EQ(wrong("/workers/1/threads", 0), ".workers[1].threads: is 0");
  EXPECT_EQ(wrong("/workers/1/count", 0), ".workers[1].count: is 0");
  EXPECT_NE(wrong("/workers/1/capacity", -1), "");
  EXPECT_NE(wrong("/workers/1/gather_us", 5).find(".workers.gather_us: has no effect"), std::string::npos);
  EXPECT_NE(error_after([](json& j) {
              j["coordinators"] = 2;
              j["workers"][1]["gather_us"] = 1'000'001;
            }).find(".workers[1].gather_us: "),
            std::string::npos);
  EXPECT_NE(wrong("/workers/2/devices", json::array({"tpu"})), "");
  EXPECT_NE(wrong("/workers/2/devices", json::array()), "");
  EXPECT_NE(wrong("/workers", json::array()), "");
  EXPECT_NE(wrong("/coordinator/device", "tpu"), "");
  EXPECT_NE(wrong("/coordinator/device", "cpu").find("gpu_memory_utilization"), std::string::npos);
  EXPECT_NE(wrong("/control_port", 70000), "");
  EXPECT_NE(wrong("/control_port", 0), "");
  EXPECT_EQ(wrong("/coordinators", 0), ".coordinators: is 0");
  EXPECT_NE(wrong("/coordinators", 65), "");
  for (char const* field : {"interface", "secret_file", "coordinator", "workers"})
    EXPECT_EQ(error_after([&](json& j) { j.erase(field); }), std::string(".") + field + ": missing");
  EXPECT_NE(error_after([](json& j) { j["coordinator"].erase("address"); }), "");
}

TEST_F(ClusterFileTest, AllWorkersJoinSeveralCoordinators) {
  json object = sample();
  object["coordinators"] = 3;
  ClusterFile const cluster = read(object);
  EXPECT_EQ(cluster.coordinators, 3U);
  for (char const* host : {"a", "b"})
    for (auto const& arguments : worker_arguments(cluster, host, kCores))
      EXPECT_EQ(arguments[1], "10.0.0.1:7171,10.0.0.1:7172,10.0.0.1:7173") << host;
  object["workers"][1]["gather_us"] = 0;
  object["workers"][2]["gather_us"] = 1'000'000;
  auto const there = worker_arguments(read(object), "b", kCores);
  auto const end_of = [](auto const& arguments) { return std::vector(arguments.end() - 2, arguments.end()); };
  EXPECT_EQ(end_of(there[1]), (std::vector<std::string>{"--gather-us", "0"}));
  EXPECT_EQ(end_of(there[2]), (std::vector<std::string>{"--gather-us", "1000000"}));
  object["control_port"] = 65533;
  EXPECT_EQ(read(object).control_port, 65533);
  object["control_port"] = 65534;
  EXPECT_THROW(read(object), ModelError);
  json const one_host = json::parse(R"({"coordinator": {"host": "a"}, "coordinators": 2, "workers": [{"host": "a"}]})");
  EXPECT_THROW(read(one_host), ModelError) << "they join here, too: by which interface?";
}

TEST_F(ClusterFileTest, OneHostNeedsNoNetworkAndIsToldSo) {
  json object = json::parse(R"({"coordinator": {"host": "a"}, "workers": [{"host": "a", "count": 2}]})");
  EXPECT_EQ(read(object).workers.size(), 2U);
  EXPECT_EQ(read(object).interface, "");
  object["interface"] = "eth0";
  EXPECT_THROW(read(object), ModelError);
}

}  // namespace
}  // namespace expertmesh
