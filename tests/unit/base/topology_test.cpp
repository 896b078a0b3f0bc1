#include "common/base/topology.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "common/base/cores.h"
#include "common/base/error.h"

namespace expertmesh {
namespace {

using Node = Topology::Node;
using Pinning = ThreadPlan::Pinning;

std::vector<int> first_cores(int count) {
  std::vector<int> cores(static_cast<std::size_t>(count));
  std::iota(cores.begin(), cores.end(), 0);
  return cores;
}

Topology synthetic(std::string const& text, std::vector<int> const& allowed) {
  return read_topology(TopologyFormat::synthetic, text, allowed);
}

std::vector<std::size_t> threads_of(ThreadPlan const& plan) {
  std::vector<std::size_t> counts;
  for (ThreadPlan::Node const& node : plan.nodes()) counts.push_back(node.num_threads);
  return counts;
}

TEST(Topology, OneTwoFourAndEightNodes) {
  EXPECT_EQ(synthetic("node:1 core:4 pu:1", first_cores(4)).nodes, (std::vector<Node>{{0, {0, 1, 2, 3}}}));
  EXPECT_EQ(synthetic("node:2 core:2 pu:2", first_cores(8)).nodes,
            (std::vector<Node>{{0, {0, 1, 2, 3}}, {1, {4, 5, 6, 7}}}));
  EXPECT_EQ(synthetic("pack:2 node:2 core:1 pu:2", first_cores(8)).nodes,
            (std::vector<Node>{{0, {0, 1}}, {1, {2, 3}}, {2, {4, 5}}, {3, {6, 7}}}));
  Topology const eight = synthetic("pack:2 node:4 core:3 pu:1", first_cores(24));
  ASSERT_EQ(eight.nodes.size(), 8U);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(eight.nodes[i].cores.size(), 3U);
}

// Hardware threads of a core are neighbours, whatever their numbers.
TEST(Topology, NeighboursShareACore) {
  EXPECT_EQ(synthetic("node:2 core:2 pu:2(indexes=0,4,1,5,2,6,3,7)", first_cores(8)).nodes,
            (std::vector<Node>{{0, {0, 4, 1, 5}}, {1, {2, 6, 3, 7}}}));
}

TEST(Topology, HasTheAllowedCoresAlone) {
  Topology const all = synthetic("node:4 core:4 pu:1", first_cores(16));
  std::vector<int> const allowed{3, 4, 6, 13};
  Topology const part = synthetic("node:4 core:4 pu:1", allowed);
  EXPECT_EQ(part.nodes, (std::vector<Node>{{0, {3}}, {1, {4, 6}}, {3, {13}}}));
  EXPECT_EQ(all.only(allowed), part);
  EXPECT_EQ(synthetic("node:4 core:4 pu:1", {9, 10}).nodes, (std::vector<Node>{{2, {9, 10}}}));
}

TEST(Topology, IsOneNodeWhereCoresAreUnknown) {
  EXPECT_EQ(synthetic("node:2 core:2 pu:1", {1, 3, 4}).nodes, (std::vector<Node>{{0, {1, 3, 4}}}));
}

// Cores of a node without memory have the one of their package that has some.
TEST(Topology, NodesWithoutMemoryCountAsTheNearest) {
  auto const file = std::filesystem::path(testing::TempDir()) / "topology_test.xml";
  std::ofstream out(file);
  out << R"(<?xml version="1.0"?><!DOCTYPE topology SYSTEM "hwloc2.dtd"><topology version="2.0">
<object type="Machine" os_index="0" cpuset="0x3f" complete_cpuset="0x3f" allowed_cpuset="0x3f" nodeset="0x1f" complete_nodeset="0x1f" allowed_nodeset="0x1f" gp_index="1">
 <object type="NUMANode" os_index="4" cpuset="0x3f" complete_cpuset="0x3f" nodeset="0x10" complete_nodeset="0x10" gp_index="2" local_memory="8589934592"/>
)";
  int gp = 10;
  auto const hex = [](unsigned bits) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%x", bits);
    return std::string(text);
  };
  auto const sets = [&](unsigned cores, unsigned nodes) {
    return "cpuset=\"" + hex(cores) + "\" complete_cpuset=\"" + hex(cores) + "\" nodeset=\"" + hex(nodes) +
           "\" complete_nodeset=\"" + hex(nodes) + "\" gp_index=\"" + std::to_string(gp++) + "\"";
  };
  // Package 0: node 0 with memory and cores 0, 1, node 1 without memory and cores 2, 3. Package 1: node 2 with cores 4,
  // 5 and memory, and node 3, high-bandwidth memory of the same cores. On the machine: node 4, memory alone.
  auto const group = [&](unsigned node, char const* memory, unsigned first) {
    unsigned const cores = 3U << first;
    out << "<object type=\"Group\" " << sets(cores, 1U << node) << "><object type=\"NUMANode\" os_index=\"" << node
        << "\" " << sets(cores, 1U << node) << " local_memory=\"" << memory << "\"/>";
    for (unsigned core = first; core < first + 2; ++core)
      out << "<object type=\"PU\" os_index=\"" << core << "\" " << sets(1U << core, 1U << node) << "/>";
    out << "</object>\n";
  };
  out << "<object type=\"Package\" os_index=\"0\" " << sets(0x0f, 0x3) << ">";
  group(0, "4294967296", 0);
  group(1, "0", 2);
  out << "</object><object type=\"Package\" os_index=\"1\" " << sets(0x30, 0xc) << ">";
  for (char const* node : {"2", "3"})
    out << "<object type=\"NUMANode\" os_index=\"" << node << "\" " << sets(0x30, *node == '2' ? 0x4 : 0x8)
        << " local_memory=\"4294967296\"/>";
  for (unsigned core = 4; core < 6; ++core)
    out << "<object type=\"PU\" os_index=\"" << core << "\" " << sets(1U << core, 0xc) << "/>";
  out << "</object></object></topology>\n";
  out.close();
  EXPECT_EQ(read_topology(TopologyFormat::xml_file, file.string(), first_cores(6)).nodes,
            (std::vector<Node>{{0, {0, 1, 2, 3}}, {2, {4, 5}}}));
  std::filesystem::remove(file);
}

TEST(Topology, RefusesWhatHwlocCannotRead) {
  EXPECT_THROW((void)synthetic("no such thing", {0}), ModelError);
  EXPECT_THROW((void)read_topology(TopologyFormat::xml_file, "/nonexistent", {0}), ModelError);
}

TEST(Topology, OfThisHostHasEachAllowedCoreOnce) {
  std::vector<int> cores;
  for (Node const& node : read_topology().nodes) cores.insert(cores.end(), node.cores.begin(), node.cores.end());
  std::ranges::sort(cores);
  EXPECT_EQ(cores, allowed_cores());
}

TEST(ShareCores, StretchesWithoutOverlapOverAllNodes) {
  Topology const two = synthetic("node:2 core:4 pu:1", first_cores(8));
  using Shares = std::vector<std::vector<int>>;
  EXPECT_EQ(share_cores(two, {4, 4}), (Shares{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(share_cores(two, {2, 2}), (Shares{{0, 1, 2, 3}, {4, 5, 6, 7}}));  // a node each, and not one for both
  EXPECT_EQ(share_cores(two, {6, 1, 1}), (Shares{{0, 1, 2, 3, 4, 5}, {6}, {7}}));
  EXPECT_EQ(share_cores(two, {1}), (Shares{first_cores(8)}));
  EXPECT_TRUE(share_cores(two, {4, 5}).empty());
  EXPECT_TRUE(share_cores(two, {}).empty());
}

TEST(ShareCores, EachGetsAtLeastItsThreads) {
  for (std::string const text :
       {"node:1 core:7 pu:1", "node:2 core:5 pu:1", "node:3 core:3 pu:1", "node:8 core:2 pu:2"}) {
    Topology const topology = synthetic(text, first_cores(text.starts_with("node:8")   ? 32
                                                          : text.starts_with("node:1") ? 7
                                                          : text.starts_with("node:2") ? 10
                                                                                       : 9));
    for (std::size_t a = 1; a <= 4; ++a)
      for (std::size_t b = 0; a + b <= 6; ++b) {
        auto const shares = share_cores(topology, {a, b, 1});
        ASSERT_EQ(shares.size(), 3U);
        EXPECT_GE(shares[0].size(), a);
        EXPECT_GE(shares[1].size(), b);
        EXPECT_GE(shares[2].size(), 1U);
        std::set<int> distinct;
        std::size_t all = 0;
        for (auto const& share : shares) {
          distinct.insert(share.begin(), share.end());
          all += share.size();
        }
        EXPECT_EQ(distinct.size(), all);
        EXPECT_EQ(all, topology.num_cores());
      }
  }
}

TEST(PlanThreads, SpreadsThemOverTheNodes) {
  Topology const two = synthetic("node:2 core:4 pu:1", first_cores(8));
  ThreadPlan const plan = plan_threads(two, 8, Pinning::node);
  EXPECT_EQ(threads_of(plan), (std::vector<std::size_t>{4, 4}));
  EXPECT_EQ(plan.num_threads(), 8U);
  EXPECT_EQ(plan.cores_of(0), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(plan.cores_of(3), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(plan.cores_of(4), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(plan.text(),
            "4 on 4 cores of NUMA node 0, 4 on 4 cores of NUMA node 1, pinned to them; each node has its share of the "
            "weights and the KV cache");
  EXPECT_EQ(threads_of(plan_threads(two, 3, Pinning::node)), (std::vector<std::size_t>{1, 2}));
  EXPECT_EQ(threads_of(plan_threads(two, 2, Pinning::node)), (std::vector<std::size_t>{1, 1}));
  // An affinity that leaves a quarter of one of them.
  EXPECT_EQ(threads_of(plan_threads(two.only({0, 4, 5, 6, 7}), 5, Pinning::node)), (std::vector<std::size_t>{1, 4}));
  EXPECT_EQ(threads_of(plan_threads(synthetic("node:8 core:16 pu:1", first_cores(128)), 8, Pinning::node)),
            std::vector<std::size_t>(8, 1));
}

TEST(PlanThreads, NodesNeverHaveMoreThreadsThanCores) {
  for (int odd = 1; odd <= 7; ++odd) {
    std::vector<int> allowed = first_cores(16);
    allowed.erase(allowed.begin() + 2, allowed.begin() + 2 + odd);
    Topology const topology = synthetic("node:4 core:4 pu:1", allowed);
    for (std::size_t threads = 1; threads <= allowed.size(); ++threads)
      for (Pinning const pinning : {Pinning::node, Pinning::core}) {
        ThreadPlan const plan = plan_threads(topology, threads, pinning);
        EXPECT_EQ(plan.num_threads(), threads);
        if (plan.cores_of(0).empty()) continue;
        for (ThreadPlan::Node const& node : plan.nodes()) EXPECT_LE(node.num_threads, node.cores.size());
      }
  }
}

TEST(PlanThreads, PinsNobodyWithoutNeed) {
  Topology const two = synthetic("node:2 core:2 pu:1", first_cores(4));
  ThreadPlan const many = plan_threads(two, 5, Pinning::node);
  EXPECT_EQ(many.text(), "not pinned, 5 threads have 4 cores");
  EXPECT_EQ(plan_threads(two, 5, Pinning::core).text(), many.text());
  EXPECT_EQ(plan_threads(two, 4, Pinning::none).text(), "not pinned, by --bind none");
  EXPECT_EQ(plan_threads(two, 1, Pinning::node).text(), "not pinned, too few threads for several NUMA nodes");
  EXPECT_EQ(plan_threads(two.only({2, 3}), 2, Pinning::node).text(), "not pinned, there is one NUMA node");
  // Of two, the other being another process's.
  EXPECT_EQ(plan_threads(two, 2, Pinning::node, {2, 3}).cores_of(1), (std::vector<int>{2, 3}));
  for (std::size_t i = 0; i < 5; ++i) EXPECT_TRUE(many.cores_of(i).empty());
  EXPECT_EQ(many.nodes().size(), 1U);
}

TEST(PlanThreads, ACoreEachFromTheLastOneOn) {
  auto const cores = [](ThreadPlan const& plan) {
    std::vector<int> all;
    for (std::size_t i = 0; i < plan.num_threads(); ++i) {
      EXPECT_EQ(plan.cores_of(i).size(), 1U);
      all.push_back(plan.cores_of(i).front());
    }
    return all;
  };
  Topology const one = synthetic("node:1 core:4 pu:1", first_cores(4));
  EXPECT_EQ(cores(plan_threads(one, 4, Pinning::core)), (std::vector<int>{3, 2, 1, 0}));
  EXPECT_EQ(cores(plan_threads(one, 1, Pinning::core)), (std::vector<int>{3}));
  // Cores of their own before hardware threads of one.
  EXPECT_EQ(cores(plan_threads(synthetic("node:2 core:2 pu:2", first_cores(8)), 4, Pinning::core)),
            (std::vector<int>{7, 5, 3, 1}));
}

TEST(PlanThreads, OfThisProcessIsUnpinnedWhereTheSystemRefuses) {
  Topology const here = read_topology();
  Topology const elsewhere{.nodes = {{.index = 0, .cores = {1000, 1001}}, {.index = 1, .cores = here.nodes[0].cores}}};
  EXPECT_EQ(plan_own_threads(elsewhere, 2, Pinning::node).text(), "not pinned, the system refuses it");
  std::vector<int> const before = allowed_cores();
  Topology const fake{.nodes = {{.index = 0, .cores = before}, {.index = 1, .cores = before}}};
  EXPECT_EQ(threads_of(plan_own_threads(fake, 2, Pinning::node)), (std::vector<std::size_t>{1, 1}));
  EXPECT_EQ(allowed_cores(), before);
}

}  // namespace
}  // namespace expertmesh
