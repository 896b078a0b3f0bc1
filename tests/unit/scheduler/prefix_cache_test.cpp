// Blocks that outlive their sequence: which are found, which are given up, and that nobody ever attends to another's.
#include "coordinator/scheduler/prefix_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <random>
#include <set>

#include "coordinator/scheduler/scheduler.h"
#include "tests/unit/scheduler/kv_oracle.h"

namespace expertmesh {
namespace {

using Tokens = std::vector<TokenId>;
using Blocks = std::vector<std::uint32_t>;

Blocks blocks_of(std::optional<PrefixCache::Entry> const& entry) {
  return entry ? Blocks(entry->blocks.begin(), entry->blocks.end()) : Blocks();
}

TEST(PrefixCache, FindsWhatContinuesWhat) {
  PrefixCache cache(2, std::array<std::size_t, 1>{4});
  auto const empty = PrefixCache::empty(0);
  auto const first = cache.add(empty, Tokens{1, 2}, Blocks{3}).prefix;
  auto const second = cache.add(first, Tokens{1, 2}, Blocks{0}).prefix;
  EXPECT_NE(first, second);
  EXPECT_EQ(blocks_of(cache.find(empty, Tokens{1, 2})), Blocks{3});
  EXPECT_EQ(blocks_of(cache.find(first, Tokens{1, 2})), Blocks{0});
  EXPECT_FALSE(cache.find(second, Tokens{1, 2}));
  EXPECT_FALSE(cache.find(empty, Tokens{2, 1}));
  EXPECT_FALSE(cache.find(PrefixCache::empty(7), Tokens{1, 2})) << "another kind";
  EXPECT_EQ(cache.num_nodes(), 2U);
}

TEST(PrefixCache, TheFirstBlockOfAGroupStays) {
  PrefixCache cache(1, std::array<std::size_t, 2>{4, 4});
  auto const empty = PrefixCache::empty(0);
  (void)cache.add(empty, Tokens{5}, Blocks{1, kNoKvBlock});
  EXPECT_EQ(blocks_of(cache.add(empty, Tokens{5}, Blocks{2, 3})), (Blocks{1, 3}));
  cache.drop(0, 1);
  EXPECT_EQ(blocks_of(cache.find(empty, Tokens{5})), (Blocks{kNoKvBlock, 3}));
  EXPECT_EQ(blocks_of(cache.add(empty, Tokens{5}, Blocks{2, 0})), (Blocks{2, 3}));
}

TEST(PrefixCache, WhatContinuedSomethingThatIsGoneIsNotFound) {
  PrefixCache cache(1, std::array<std::size_t, 1>{3});
  auto const empty = PrefixCache::empty(0);
  auto const first = cache.add(empty, Tokens{5}, Blocks{0}).prefix;
  (void)cache.add(first, Tokens{6}, Blocks{1});
  cache.drop(0, 0);
  EXPECT_FALSE(cache.find(empty, Tokens{5}));
  auto const again = cache.add(empty, Tokens{5}, Blocks{2}).prefix;
  EXPECT_NE(again, first);
  EXPECT_FALSE(cache.find(again, Tokens{6}));
  cache.drop(0, 1);
  cache.drop(0, 2);
  EXPECT_EQ(cache.num_nodes(), 0U);
}

TEST(PrefixCacheDeathTest, ABlockHoldsOneThing) {
  PrefixCache cache(1, std::array<std::size_t, 1>{3});
  (void)cache.add(0, Tokens{5}, Blocks{0});
  EXPECT_DEATH((void)cache.add(0, Tokens{6}, Blocks{0}), "block 0 of group 0 holds other tokens");
  EXPECT_DEATH(cache.drop(0, 1), "block 1 of group 0 is not in the cache");
}

TEST(KvBlockPool, KeptBlocksWaitAndTheLongestUnusedGoesFirst) {
  Blocks dropped;
  KvBlockPool pool(4, [&](std::uint32_t block) { dropped.push_back(block); });
  for (std::uint32_t b = 0; b < 3; ++b) {
    EXPECT_EQ(pool.take(), b);
    pool.keep(b);
  }
  for (std::uint32_t b : {1U, 0U, 2U}) pool.release(b);
  EXPECT_EQ(pool.num_free(), 4U);
  pool.share(1);
  EXPECT_EQ(pool.num_used(), 1U);
  pool.release(1);  // now unused for the shortest time
  pool.check_integrity();
  EXPECT_EQ(pool.take(), 3U) << "one that holds nothing comes first";
  EXPECT_TRUE(dropped.empty());
  EXPECT_EQ(pool.take(), 0U);
  EXPECT_EQ(pool.take(), 2U);
  EXPECT_EQ(pool.take(), 1U);
  EXPECT_EQ(dropped, (Blocks{0, 2, 1}));
  EXPECT_FALSE(pool.is_kept(0));
  pool.release(0);
  pool.check_integrity();
  EXPECT_EQ(pool.take(), 0U) << "free for good: it was not kept again";
}

// ---- with the scheduler

constexpr std::size_t kBlock = 16;  // tokens

std::unique_ptr<Sequence> sequence(std::uint64_t id, Tokens prompt, std::size_t max_new, std::uint32_t kind = 0) {
  auto s = std::make_unique<Sequence>();
  s->id = SequenceId(id);
  s->tokens = std::move(prompt);
  s->prompt_length = s->tokens.size();
  s->max_length = s->prompt_length + max_new;
  s->reuse_prefix = true;
  s->prefix_kind = kind;
  return s;
}

Tokens counted(std::size_t count, TokenId first = 0) {
  Tokens tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

SchedulerLimits limits(std::size_t length = 200) {
  return {.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_model_len = length, .prefix_cache = true};
}

// Its prompt, and `answer` as what was sampled.
void run_to_end(Scheduler& scheduler, Sequence& s, Tokens const& answer) {
  scheduler.submit(s);
  for (std::size_t next = 0;;) {
    StepBatch const& batch = scheduler.schedule();
    bool const samples = !batch.logit_rows().empty();
    scheduler.complete_step();
    scheduler.check_integrity();
    if (!samples) continue;
    if (next == answer.size()) break;
    s.tokens.push_back(answer[next++]);
  }
  scheduler.remove(s);
  scheduler.check_integrity();
}

TEST(SchedulerWithPrefixes, TheNextTurnOfAConversationStartsBehindTheLast) {
  Scheduler scheduler(limits(), std::vector<KvCacheSpec>(1), {20});
  auto first = sequence(1, counted(40), 30);
  run_to_end(scheduler, *first, counted(30, 500));  // 70 tokens, all computed
  Tokens turn = first->tokens;
  turn.push_back(9);
  auto second = sequence(2, turn, 4);
  scheduler.submit(*second);
  StepBatch const& batch = scheduler.schedule();
  EXPECT_EQ(batch.positions()[0], 64U) << "four whole blocks";
  EXPECT_EQ(batch.num_tokens(), 71U - 64U);
  EXPECT_EQ(second->num_cached, 64U);
  EXPECT_EQ(scheduler.prefix_counts().found, 64U);
  EXPECT_EQ(scheduler.prefix_counts().asked, 40U + 71U);
}

TEST(SchedulerWithPrefixes, AtLeastOneTokenRuns) {
  Scheduler scheduler(limits(), std::vector<KvCacheSpec>(1), {20});
  auto first = sequence(1, counted(2 * kBlock), 1);
  run_to_end(scheduler, *first, {});
  auto again = sequence(2, counted(2 * kBlock), 1);
  scheduler.submit(*again);
  StepBatch const& batch = scheduler.schedule();
  EXPECT_EQ(batch.positions()[0], kBlock);
  ASSERT_EQ(batch.logit_rows().size(), 1U);
}

TEST(SchedulerWithPrefixes, WhoRunsAtTheSameTimeSharesBlocks) {
  Scheduler scheduler(limits(), std::vector<KvCacheSpec>(1), {20});
  auto a = sequence(1, counted(3 * kBlock + 5), 20);
  auto b = sequence(2, counted(3 * kBlock + 5), 20);
  auto whole = sequence(3, counted(3 * kBlock + 5), 20);
  whole->reuse_prefix = false;
  scheduler.submit(*a);
  (void)scheduler.schedule();
  scheduler.complete_step();
  a->tokens.push_back(7);
  scheduler.submit(*b);
  scheduler.submit(*whole);
  StepBatch const& batch = scheduler.schedule();
  EXPECT_EQ(batch.num_tokens(), 1U + 5U + (3 * kBlock + 5));
  EXPECT_EQ(b->block_tables[0].blocks[2], a->block_tables[0].blocks[2]);
  EXPECT_NE(b->block_tables[0].blocks[3], a->block_tables[0].blocks[3]);
  EXPECT_EQ(whole->num_cached, 0U);
  scheduler.check_integrity();
  scheduler.remove(*a);
  scheduler.complete_step();
  scheduler.check_integrity();
}

TEST(SchedulerWithPrefixes, OtherKindsShareNothing) {
  Scheduler scheduler(limits(), std::vector<KvCacheSpec>(1), {20});
  run_to_end(scheduler, *sequence(1, counted(40), 1, 0), {});
  auto other = sequence(2, counted(40), 1, 1);
  scheduler.submit(*other);
  EXPECT_EQ(scheduler.schedule().positions()[0], 0U);
}

// What lies before the window is not needed, and may be gone.
TEST(SchedulerWithPrefixes, OfAWindowItsLastBlocksAreEnough) {
  std::vector<KvCacheSpec> groups(2);
  groups[1].kind = KvCacheKind::window;
  groups[1].span_tokens = kBlock;
  Scheduler scheduler(limits(), groups, {20, 6});
  run_to_end(scheduler, *sequence(1, counted(8 * kBlock), 1), {});  // goes round in the window's six
  auto again = sequence(2, counted(8 * kBlock + 3), 1);
  scheduler.submit(*again);
  EXPECT_EQ(scheduler.schedule().positions()[0], 8 * kBlock);
  EXPECT_EQ(again->block_tables[1].num_freed, 7U);
  scheduler.check_integrity();
  scheduler.complete_step();
  scheduler.remove(*again);
  auto shorter = sequence(3, counted(2 * kBlock + 3), 1);
  scheduler.submit(*shorter);
  EXPECT_EQ(scheduler.schedule().positions()[0], 0U) << "its window has been written over";
}

TEST(SchedulerWithPrefixes, WaitingBlocksGiveWayToWhoeverNeedsRoom) {
  Scheduler scheduler(limits(), std::vector<KvCacheSpec>(1), {13});
  run_to_end(scheduler, *sequence(1, counted(100), 1), {});
  run_to_end(scheduler, *sequence(2, counted(190, 1000), 1), {});  // 12 blocks
  auto first = sequence(3, counted(100), 1);
  scheduler.submit(*first);
  EXPECT_EQ(scheduler.schedule().positions()[0], kBlock) << "of the first the beginning was given up last";
  scheduler.check_integrity();
}

// Many sequences that begin alike, end at any time and give way, in caches of every kind: whatever a token attends to
// was computed after the same tokens. All end, and with them every reference.
TEST(SchedulerWithPrefixes, NobodyAttendsToAnothersTokens) {
  std::size_t found = 0;
  std::size_t preemptions = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 rng(seed);
    SchedulerLimits const limits{.max_num_seqs = 1 + rng() % 5,
                                 .max_num_batched_tokens = 5 + rng() % 60,
                                 .max_model_len = 120,
                                 .prefix_cache = true};
    std::vector<KvCacheSpec> groups(1 + rng() % 3);
    std::vector<std::size_t> blocks;
    for (auto& group : groups) {
      group.kind = std::array{KvCacheKind::full, KvCacheKind::window, KvCacheKind::chunked}[rng() % 3];
      group.block_tokens = 4;
      if (group.has_span()) group.span_tokens = 1 + rng() % 30;
      blocks.push_back(group.most_blocks(120, limits.max_num_batched_tokens) + rng() % 8);
    }
    Scheduler scheduler(limits, groups, blocks);
    test::KvOracle oracle(groups, blocks);
    std::vector<Tokens> known{{}};  // what a later one may begin with
    std::vector<std::unique_ptr<Sequence>> all;
    std::size_t num_ended = 0;
    for (std::size_t step = 0; num_ended < 40; ++step) {
      ASSERT_LT(step, 8000U);
      if (all.size() < 40 && rng() % 3 == 0) {
        Tokens prompt = known[rng() % known.size()];
        prompt.resize(std::min<std::size_t>(rng() % (prompt.size() + 1), 80));
        for (std::size_t more = 1 + rng() % 20; more > 0; --more) prompt.push_back(static_cast<TokenId>(rng() % 3));
        all.push_back(sequence(all.size() + 1, std::move(prompt), 1 + rng() % 19, rng() % 2));
        all.back()->reuse_prefix = rng() % 8 != 0;
        scheduler.submit(*all.back());
      }
      StepBatch const& batch = scheduler.schedule();
      ASSERT_EQ(batch.num_tokens() == 0, scheduler.empty());
      scheduler.check_integrity();
      ASSERT_NO_FATAL_FAILURE(oracle.run(batch)) << "seed " << seed;
      if (rng() % 8 == 0) continue;  // the step is given up
      std::vector<Sequence*> sampled;
      for (LogitRow const& row : batch.logit_rows()) sampled.push_back(batch.sequences()[row.sequence]);
      scheduler.complete_step();
      for (Sequence* s : sampled) {
        s->tokens.push_back(static_cast<TokenId>(rng() % 3));
        if (s->tokens.size() < s->max_length && rng() % 20 != 0) continue;
        known.push_back(s->tokens);
        scheduler.remove(*s);
        ++num_ended;
      }
      scheduler.check_integrity();
    }
    found += scheduler.prefix_counts().found;
    preemptions += scheduler.num_preemptions();
    EXPECT_EQ(scheduler.kv_usage(), 0);
  }
  EXPECT_GT(found, 10000U);
  EXPECT_GT(preemptions, 50U);
}

TEST(SchedulerWithPrefixesDeathTest, NotWhereKeysDependOnMoreThanTheTokensBefore) {
  auto with_counts = limits();
  with_counts.num_expert_counts = 3;
  EXPECT_DEATH(Scheduler(with_counts, std::vector<KvCacheSpec>(1), {20}), "more than the tokens before");
}

}  // namespace
}  // namespace expertmesh
