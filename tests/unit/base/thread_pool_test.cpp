#include "common/base/thread_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace expertmesh {
namespace {

class ThreadPoolTest : public testing::TestWithParam<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 4));

TEST_P(ThreadPoolTest, EveryIndexRunsOnceAndIsSeenByTheCaller) {
  ThreadPool pool(GetParam());
  for (std::size_t count : {0, 1, 2, 3, 4, 5, 7, 100, 1001}) {
    std::vector<int> times(count, 0);  // plain ints: parallel_for itself must order the accesses
    pool.parallel_for(count, [&](std::size_t begin, std::size_t end, std::size_t thread_index) {
      EXPECT_LT(begin, end);
      EXPECT_LE(end, count);
      EXPECT_LT(thread_index, pool.num_threads());
      for (std::size_t i = begin; i < end; ++i) ++times[i];
    });
    EXPECT_EQ(times, std::vector<int>(count, 1)) << count;
  }
}

TEST_P(ThreadPoolTest, ManyGenerationsEachSeeTheOneBefore) {
  ThreadPool pool(GetParam());
  std::vector<std::uint64_t> a(16, 0), b(16, 0);
  constexpr std::uint64_t kGenerations = 3000;
  for (std::uint64_t generation = 0; generation < kGenerations; ++generation) {
    // Reads what other threads wrote a generation ago.
    pool.parallel_for(16, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) b[i] = a[15 - i] + 1;
    });
    std::swap(a, b);
  }
  EXPECT_EQ(a, std::vector<std::uint64_t>(16, kGenerations));
}

TEST_P(ThreadPoolTest, EachThreadIndexHasOnePartAtATime) {
  ThreadPool pool(GetParam());
  std::vector<std::size_t> parts(pool.num_threads(), 0);
  std::vector<std::thread::id> owners(pool.num_threads());
  for (int generation = 0; generation < 50; ++generation)
    pool.parallel_for(100, [&](std::size_t, std::size_t, std::size_t thread_index) {
      ++parts[thread_index];
      owners[thread_index] = std::this_thread::get_id();
    });
  EXPECT_EQ(parts, std::vector<std::size_t>(pool.num_threads(), 50));
  EXPECT_EQ(std::set<std::thread::id>(owners.begin(), owners.end()).size(), pool.num_threads());
  EXPECT_EQ(owners[0], std::this_thread::get_id());
}

// A pool thrown away at once meets its threads in every state between start and sleep.
TEST_P(ThreadPoolTest, EndsInWhateverStateItsThreadsAre) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(GetParam());
    if (i % 2 == 0) pool.parallel_for(10, [](std::size_t, std::size_t, std::size_t) {});
  }
}

}  // namespace
}  // namespace expertmesh
