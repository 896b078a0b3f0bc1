#include "coordinator/scheduler/kv_sizing.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

using Blocks = std::vector<std::size_t>;

KvCacheSpec group(KvCacheKind kind, std::size_t span, std::size_t bytes_per_block) {
  return {.kind = kind, .span_tokens = span, .bytes_per_block = bytes_per_block, .layers = {}};
}

SchedulerLimits const kLimits{.max_num_seqs = 64, .max_num_batched_tokens = 512, .max_model_len = 4096};

TEST(KvSizing, AFullGroupHasWhatTheMemoryHolds) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::full, 0, 1000)};
  EXPECT_EQ(kv_blocks_for(groups, kLimits, 4096), Blocks{64 * 256});
  EXPECT_EQ(kv_blocks_for(groups, kLimits, 0), Blocks{256}) << "one sequence of the greatest length";
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 300 * 1000 + 999), Blocks{300});
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 20000 * 1000), Blocks{20000});
}

TEST(KvSizing, WindowsHaveAllTheyCanUseAndFullGroupsTheRest) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::window, 128, 1000), group(KvCacheKind::full, 0, 3000)};
  std::size_t const window = 64 * 9 + 41 - 9;  // all decode, and one computes a prompt
  EXPECT_EQ(kv_blocks_for(groups, kLimits, 4096), (Blocks{window, 64 * 256}));
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 1000 * window + 3000 * 3000 + 2999), (Blocks{window, 3000}));
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 1000 * window + 3000 * 64 * 256), (Blocks{window, 64 * 256}));
}

TEST(KvSizing, AllHaveTheSameWhereMemoryIsShort) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::full, 0, 1000), group(KvCacheKind::chunked, 2048, 1000)};
  Blocks const blocks = divide_kv_memory(groups, kLimits, 2000 * 64 * 20);
  EXPECT_EQ(blocks[0] / 64, 20U) << "each of 64 sequences: 20 blocks in either group";
  EXPECT_EQ(blocks[1] / 64, 20U);
  EXPECT_LE(kv_bytes(groups, blocks), 2000U * 64 * 20);
}

TEST(KvSizing, WithTheLeastOneLongSequenceRuns) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::window, 128, 1000), group(KvCacheKind::full, 0, 3000),
                                        group(KvCacheKind::chunked, 1024, 500)};
  Blocks const least = kv_blocks_for(groups, kLimits, 0);
  EXPECT_EQ(least, (Blocks{41, 256, 97}));
  Blocks const blocks = divide_kv_memory(groups, kLimits, kv_bytes(groups, least));
  EXPECT_EQ(blocks, least);
  EXPECT_TRUE(Scheduler(kLimits, groups, blocks).fits_ever(4096));
  EXPECT_DEATH(divide_kv_memory(groups, kLimits, kv_bytes(groups, least) - 1), "too small for one sequence");
}

TEST(KvSizing, WindowsAloneTakeNoMoreThanTheyCanUse) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::window, 128, 1000)};
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 1000 * 200), Blocks{200});
  EXPECT_EQ(divide_kv_memory(groups, kLimits, 1000 * 100000), Blocks{64 * 9 + 41 - 9});
}

TEST(KvSizing, EveryBudgetIsKeptAndFitsALongSequence) {
  std::vector<KvCacheSpec> const groups{group(KvCacheKind::full, 0, 700), group(KvCacheKind::window, 300, 1100),
                                        group(KvCacheKind::chunked, 64, 450)};
  std::size_t const least = kv_bytes(groups, kv_blocks_for(groups, kLimits, 0));
  Blocks before(3, 0);
  for (std::size_t bytes = least; bytes < 40 * least; bytes += least / 3) {
    Blocks const blocks = divide_kv_memory(groups, kLimits, bytes);
    EXPECT_LE(kv_bytes(groups, blocks), bytes);
    EXPECT_GT(kv_bytes(groups, blocks) + groups[0].bytes_per_block, bytes) << "the full group has the rest";
    EXPECT_TRUE(Scheduler(kLimits, groups, blocks).fits_ever(4096));
    EXPECT_GE(blocks[1], before[1]) << "more memory is never less for a window";
    before = blocks;
  }
}

}  // namespace
}  // namespace expertmesh
