#include "common/base/thread_plan.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/cores.h"
#include "common/base/thread_pool.h"
#include "common/base/topology.h"

namespace expertmesh {
namespace {

constexpr std::size_t kRegion = ThreadPlan::kRegionBytes;

ThreadPlan plan_of(std::vector<std::size_t> const& threads) {
  std::vector<ThreadPlan::Node> nodes;
  for (std::size_t const count : threads)
    nodes.push_back({.index = static_cast<unsigned>(nodes.size()), .num_threads = count, .cores = allowed_cores()});
  return {nodes, ThreadPlan::Pinning::node};
}

std::byte const* address(std::size_t number) {
  return reinterpret_cast<std::byte const*>(number);
}

TEST(ThreadPlan, DealsRegionsOutInTurn) {
  ThreadPlan const plan = plan_of({3, 3});
  for (std::size_t region = 0; region < 10; ++region) {
    EXPECT_EQ(plan.node_of(address(region * kRegion)), region % 2);
    EXPECT_EQ(plan.node_of(address(region * kRegion + kRegion - 1)), region % 2);
  }
  EXPECT_EQ(ThreadPlan::anywhere(4, "").node_of(address(kRegion)), 0U);
}

TEST(ThreadPlan, RegionsGoByThreads) {
  for (auto const& threads : {std::vector<std::size_t>{6, 2}, {1, 2, 4}, {5, 5, 5, 1}, {1, 1, 1, 1, 1, 1, 1, 1}}) {
    ThreadPlan const plan = plan_of(threads);
    std::size_t const all = std::accumulate(threads.begin(), threads.end(), std::size_t{0});
    std::vector<std::size_t> regions(threads.size());
    for (std::size_t region = 0; region < 10 * all; ++region) {
      ++regions[plan.node_of(address(region * kRegion))];
      for (std::size_t j = 0; j < threads.size(); ++j)  // at no time far from its share
        EXPECT_NEAR(static_cast<double>(regions[j]),
                    static_cast<double>((region + 1) * threads[j]) / static_cast<double>(all), 1.01);
    }
    for (std::size_t j = 0; j < threads.size(); ++j) EXPECT_EQ(regions[j], 10 * threads[j]);
  }
}

// Threads are pinned where the plan says, and parallel_for's caller by place_caller().
TEST(ThreadPlan, ThreadsOfAPoolRunOnItsCores) {
  std::vector<int> const here = allowed_cores();
  ThreadPlan const plan(
      {{.index = 0, .num_threads = 1, .cores = {here.front()}}, {.index = 1, .num_threads = 2, .cores = {here.back()}}},
      ThreadPlan::Pinning::node);
  std::vector<std::vector<int>> cores(3);
  std::thread([&] {
    ThreadPool pool(plan);
    pool.place_caller();
    pool.parallel_for(3, [&](std::size_t, std::size_t, std::size_t thread) { cores[thread] = allowed_cores(); });
  }).join();
  EXPECT_EQ(cores, (std::vector<std::vector<int>>{{here.front()}, {here.back()}, {here.back()}}));
  EXPECT_EQ(allowed_cores(), here);
}

bool is_there(std::byte* page) {
  unsigned char there = 0;
  auto const begin = reinterpret_cast<std::uintptr_t>(page) / 4096 * 4096;
  EXPECT_EQ(mincore(reinterpret_cast<void*>(begin), 1, &there), 0);
  return (there & 1U) != 0;
}

// Of a page that is there; none where the system does not tell (a container without SYS_NICE).
std::optional<int> node_of_page(std::byte* page) {
  int node = -1;
  void* pages[] = {page};
  return syscall(SYS_move_pages, 0, 1UL, pages, nullptr, &node, 0) == 0 ? std::optional(node) : std::nullopt;
}

TEST(PlacePages, EveryPageIsThereAfterwardsOnItsNode) {
  std::vector<int> const before = allowed_cores();
  Topology const here = read_topology();
  auto const here_index = static_cast<int>(here.nodes.front().index);
  ThreadPlan const plan({{.index = 0, .num_threads = 2, .cores = {before.front()}},
                         {.index = 1, .num_threads = 1, .cores = {before.back()}}},
                        ThreadPlan::Pinning::node);
  // Of the system itself: what malloc gives under the address sanitizer has its pages from the beginning.
  constexpr std::size_t kBytes = 3 * kRegion + 12'345;
  auto const give_back = [](void* data) { munmap(data, kBytes); };
  std::unique_ptr<void, decltype(give_back)> const memory(
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), give_back);
  ASSERT_NE(memory.get(), MAP_FAILED);
  std::span const all(static_cast<std::byte*>(memory.get()), kBytes);
  // Not from a region's begin, and not to its end.
  std::span<std::byte> const part = all.subspan(5'000, 2 * kRegion + 100'000);
  std::byte* const last = part.data() + part.size() - 1;
  EXPECT_FALSE(is_there(last));
  EXPECT_TRUE(place_fresh_pages(part, plan));
  EXPECT_EQ(allowed_cores(), before);
  for (std::size_t at = 0; at < part.size(); at += 4096) {
    EXPECT_EQ(part[at], std::byte{});
    EXPECT_TRUE(is_there(part.data() + at)) << at;
    if (here.nodes.size() == 1) {
      EXPECT_EQ(node_of_page(part.data() + at).value_or(here_index), here_index) << at;
    }
  }
  EXPECT_TRUE(is_there(last));
  EXPECT_FALSE(place_fresh_pages(all, ThreadPlan::anywhere(3, "")));
}

TEST(PlacePages, TouchingLeavesWhatIsThere) {
  for (ThreadPlan const& plan : {plan_of({1, 1}), ThreadPlan::anywhere(2, "")}) {
    AlignedBuffer<std::byte> buffer(2 * kRegion);
    buffer[kRegion] = std::byte{7};
    EXPECT_TRUE(touch_pages(buffer.span(), plan));
    EXPECT_EQ(buffer[kRegion], std::byte{7});
    EXPECT_TRUE(is_there(&buffer[2 * kRegion - 1]));
    std::stop_source stop;
    stop.request_stop();
    EXPECT_FALSE(touch_pages(buffer.span(), plan, stop.get_token()));
  }
}

TEST(AlignedBuffers, LastingOnesLieSideBySideWhateverComesAndGoesBetween) {
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  std::size_t beside = 0;
  std::vector<AlignedBuffer<std::byte>> buffers;
  for (std::size_t i = 0; i < 70; ++i) {  // more than a stretch has room for
    AlignedBuffer<std::byte> passing(kBytes);
    passing[0] = std::byte{1};
    buffers.emplace_back(kBytes, nullptr, Lifetime::lasting);
    EXPECT_EQ(std::ranges::count(buffers[i].span(), std::byte{}), std::ptrdiff_t{kBytes}) << i;
    std::ranges::fill(buffers[i].span(), static_cast<std::byte>(i));
    if (i > 0 && buffers[i].data() == buffers[i - 1].data() + kBytes) ++beside;
    if (i % 10 == 5) buffers[i - 2] = {};
  }
  if (pages_come_when_written(kBytes)) {  // else malloc has the memory: the address sanitizer's
    EXPECT_GE(beside, 67U);
  }
  for (std::size_t i = 0; i < 70; ++i) {
    EXPECT_TRUE(buffers[i].empty() ||
                std::ranges::count(buffers[i].span(), static_cast<std::byte>(i)) == std::ptrdiff_t{kBytes})
        << i;
  }
}

class CpuQuota : public testing::Test {
 protected:
  CpuQuota() : root_(std::filesystem::path(testing::TempDir()) / "cpu_quota_test") {
    std::filesystem::remove_all(root_);
  }
  ~CpuQuota() override { std::filesystem::remove_all(root_); }
  void write(std::string const& path, std::string const& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::filesystem::path root_;
};

TEST_F(CpuQuota, NoneWithoutCgroups) {
  EXPECT_EQ(cpu_quota(root_), std::numeric_limits<double>::infinity());
  write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(cpu_quota(root_), std::numeric_limits<double>::infinity());
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu_quota(root_), std::numeric_limits<double>::infinity());
}

TEST_F(CpuQuota, TheStrictestOfItsGroupAndThoseAboveIt) {
  write("proc/self/cgroup", "0::/system.slice/serve.service\n");
  write("sys/fs/cgroup/system.slice/serve.service/cpu.max", "250000 100000\n");
  EXPECT_EQ(cpu_quota(root_), 2.5);
  write("sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n");
  EXPECT_EQ(cpu_quota(root_), 2.5);
  write("sys/fs/cgroup/system.slice/cpu.max", "60000 50000\n");
  EXPECT_EQ(cpu_quota(root_), 1.2);
}

TEST_F(CpuQuota, OfVersion1) {
  write("proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/docker/b\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(root_), std::numeric_limits<double>::infinity());
  write("sys/fs/cgroup/cpu/docker/b/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu/docker/b/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(root_), 3.0);
}

}  // namespace
}  // namespace expertmesh
