// Groups with a span: which blocks are held when, how few suffice, and that whoever runs has what it attends to.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>

#include "coordinator/scheduler/scheduler.h"
#include "tests/unit/scheduler/kv_oracle.h"

namespace expertmesh {
namespace {

constexpr std::size_t kBlock = 16;
KvCacheSpec const kFull{.layers = {}};

KvCacheSpec window(std::size_t tokens) {
  return {.kind = KvCacheKind::window, .span_tokens = tokens, .layers = {}};
}
KvCacheSpec chunked(std::size_t tokens) {
  return {.kind = KvCacheKind::chunked, .span_tokens = tokens, .layers = {}};
}

std::unique_ptr<Sequence> sequence(std::uint64_t id, std::size_t prompt, std::size_t max_new) {
  auto s = std::make_unique<Sequence>();
  s->id = SequenceId(id);
  s->tokens.assign(prompt, static_cast<TokenId>(id));
  s->prompt_length = prompt;
  s->max_length = prompt + max_new;
  return s;
}

// Of the blocks that num_tokens tokens lie in, those with a position that the token at `next` or a later one needs.
std::size_t blocks_in_reach(KvCacheSpec const& group, std::size_t next, std::size_t num_tokens) {
  std::set<std::size_t> blocks;
  for (std::size_t p = 0; p < (num_tokens + kBlock - 1) / kBlock * kBlock; ++p)
    if (p >= next || test::attends(group, next, p)) blocks.insert(p / kBlock);
  return blocks.size();
}

// Runs steps until nothing is to be done; `after` is called after each. Whose next token is due gets it, up to its
// max_length, with which it ends.
template <class After>
void run_all(Scheduler& scheduler, test::KvOracle& oracle, After after) {
  for (std::size_t step = 0;; ++step) {
    ASSERT_LT(step, 20000U);
    StepBatch const& batch = scheduler.schedule();
    if (batch.num_tokens() == 0) break;
    ASSERT_NO_FATAL_FAILURE(oracle.run(batch));
    std::vector<Sequence*> sampled;
    for (LogitRow const& row : batch.logit_rows())
      if (row.sample) sampled.push_back(batch.sequences()[row.sequence]);
    scheduler.complete_step();
    for (Sequence* s : sampled) {
      s->tokens.push_back(static_cast<TokenId>(s->tokens.size()));
      if (s->tokens.size() == s->max_length) scheduler.remove(*s);
    }
    scheduler.check_integrity();
    after();
  }
  EXPECT_TRUE(scheduler.empty());
  EXPECT_EQ(scheduler.kv_usage(), 0);
}

TEST(KvCacheSpecTest, FirstNeededIsTheFirstPositionAttendedTo) {
  for (KvCacheSpec const& group :
       {kFull, window(1), window(7), window(16), window(33), chunked(1), chunked(8), chunked(16), chunked(40)})
    for (std::size_t token = 0; token < 200; ++token) {
      std::size_t first = 0;
      while (!test::attends(group, token, first)) ++first;
      ASSERT_EQ(group.first_needed(token), first) << name_of(group.kind) << " " << group.span_tokens;
    }
}

TEST(KvCacheSpecTest, MostBlocksIsReachedAndNeverExceeded) {
  EXPECT_EQ(kFull.most_blocks(100, 8), 7U);
  EXPECT_EQ(window(128).most_blocks(100000, 512), 41U);
  EXPECT_EQ(window(128).most_blocks(100000, 1), 9U);
  EXPECT_EQ(window(128).most_blocks(40, 512), 3U);
  for (std::size_t span : {1, 2, 5, 16, 17, 18, 47})
    for (std::size_t step_tokens : {1, 3, 16, 18, 40}) {
      std::size_t most = 0;
      for (std::size_t computed = 0; computed < 300; ++computed)
        most = std::max(most, blocks_in_reach(window(span), computed, computed + step_tokens));
      EXPECT_EQ(window(span).most_blocks(1000, step_tokens), most) << span << ", " << step_tokens;
      std::size_t most_chunked = 0;
      for (std::size_t computed = 0; computed < 2000; ++computed)
        most_chunked = std::max(most_chunked, blocks_in_reach(chunked(span), computed, computed + step_tokens));
      EXPECT_GE(chunked(span).most_blocks(3000, step_tokens), most_chunked);
      EXPECT_LE(chunked(span).most_blocks(3000, step_tokens), most_chunked + 1);
    }
}

TEST(KvSpan, ALongAnswerHoldsWhatIsInReachAndNoMore) {
  std::vector<KvCacheSpec> const groups{kFull, window(40), chunked(48), window(1), chunked(20)};
  std::vector<std::size_t> const blocks{70, 4, 5, 2, 3};
  SchedulerLimits const limits{.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 1100};
  Scheduler scheduler(limits, groups, blocks);
  test::KvOracle oracle(groups, blocks);
  auto const s = sequence(1, 5, 1000);
  scheduler.submit(*s);
  std::vector<std::size_t> most(groups.size(), 0);
  run_all(scheduler, oracle, [&] {
    if (scheduler.empty()) return;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      BlockTable const& table = s->block_tables[g];
      ASSERT_EQ(table.num_held(), blocks_in_reach(groups[g], s->num_computed, s->num_computed))
          << "group " << g << " at " << s->num_computed;
      ASSERT_EQ(table.blocks.size(), (s->num_computed + kBlock - 1) / kBlock);
      for (std::size_t b = 0; b < table.num_freed; ++b) ASSERT_EQ(table.blocks[b], kNoKvBlock);
      most[g] = std::max(most[g], table.num_held());
    }
  });
  EXPECT_EQ(s->tokens.size(), 1005U);
  EXPECT_EQ(most, (std::vector<std::size_t>{63, 4, 3, 1, 2}));
  EXPECT_EQ(s->block_tables[1].num_freed, 0U) << "it gave all back when it left";
}

TEST(KvSpan, ALongPromptRunsInAFewBlocksOfAWindow) {
  std::vector<KvCacheSpec> const groups{window(128), kFull};
  std::vector<std::size_t> const blocks{41, 6251};
  SchedulerLimits const limits{.max_num_seqs = 2, .max_num_batched_tokens = 512, .max_model_len = 100016};
  Scheduler scheduler(limits, groups, blocks);
  auto const s = sequence(1, 100000, 16);
  scheduler.submit(*s);
  std::size_t steps = 0;
  while (s->num_pending() > 0) {
    StepBatch const& batch = scheduler.schedule();
    ASSERT_EQ(batch.num_tokens(), std::min<std::size_t>(512, s->num_pending())) << "a chunk was cut";
    EXPECT_EQ(s->block_tables[1].num_held(), 6250U) << "without a span: for the whole prompt";
    // The room of a whole table, one entry that says where the copy begins, and the copy.
    ASSERT_LE(batch.places()[0].block_tables.size(), 6251U + 1 + 41);
    scheduler.complete_step();
    scheduler.check_integrity();
    ASSERT_EQ(s->block_tables[0].num_freed, s->num_computed < 127 ? 0 : (s->num_computed - 127) / kBlock);
    ++steps;
  }
  EXPECT_EQ(steps, 196U);
  EXPECT_EQ(s->block_tables[0].num_held(), 6250U - (100000 - 127) / kBlock);
}

// Layers in turns, as many models have them; the prompt's chunks are cut by whoever decodes beside it.
TEST(KvSpan, PromptsInChunksBesideDecodes) {
  std::vector<KvCacheSpec> const groups{window(24), kFull, chunked(32)};
  std::vector<std::size_t> const blocks{9, 40, 9};
  SchedulerLimits const limits{.max_num_seqs = 3, .max_num_batched_tokens = 20, .max_model_len = 400};
  Scheduler scheduler(limits, groups, blocks);
  test::KvOracle oracle(groups, blocks);
  std::vector<std::unique_ptr<Sequence>> all;
  for (std::uint64_t id = 1; id <= 4; ++id) {
    all.push_back(sequence(id, id % 2 == 0 ? 300 : 7, id % 2 == 0 ? 20 : 120));
    scheduler.submit(*all.back());
  }
  std::size_t most_running = 0;
  run_all(scheduler, oracle, [&] { most_running = std::max(most_running, scheduler.num_running()); });
  for (auto const& s : all) EXPECT_EQ(s->tokens.size(), s->max_length);
  EXPECT_GE(most_running, 2U);
}

TEST(KvSpan, WhatFitsEndsAloneAndOneBlockLessDoesNotFit) {
  for (KvCacheSpec const& group : {window(30), window(16), window(1), chunked(30), chunked(64), window(500)})
    for (std::size_t step_tokens : {1, 7, 16, 33, 100}) {
      SchedulerLimits const limits{.max_num_seqs = 1, .max_num_batched_tokens = step_tokens, .max_model_len = 300};
      std::size_t const enough = group.most_blocks(300, step_tokens);
      EXPECT_FALSE(Scheduler(limits, {group}, {enough - 1}).fits_ever(300));
      Scheduler scheduler(limits, {group}, {enough});
      ASSERT_TRUE(scheduler.fits_ever(300));
      EXPECT_FALSE(scheduler.fits_ever(301));
      test::KvOracle oracle({group}, {enough});
      auto const s = sequence(1, 200, 100);
      scheduler.submit(*s);
      ASSERT_NO_FATAL_FAILURE(run_all(scheduler, oracle, [] {}));
      EXPECT_EQ(s->tokens.size(), 300U);
      EXPECT_EQ(scheduler.num_preemptions(), 0U);
    }
}

// Blocks of the window alone are short: the latest gives way, and only as long as others grow into their windows.
TEST(KvSpan, TheLatestGivesWayForAWindow) {
  std::vector<KvCacheSpec> const groups{kFull, window(64)};
  std::vector<std::size_t> const blocks{100, 9};
  SchedulerLimits const limits{.max_num_seqs = 2, .max_num_batched_tokens = 32, .max_model_len = 400};
  Scheduler scheduler(limits, groups, blocks);
  test::KvOracle oracle(groups, blocks);
  auto const a = sequence(1, 10, 300);
  auto const b = sequence(2, 10, 300);
  scheduler.submit(*a);
  scheduler.submit(*b);
  bool a_runs = true;
  run_all(scheduler, oracle, [&] {
    a_runs = a_runs && (a->tokens.size() == a->max_length || a->num_computed + 1 == a->tokens.size());
    if (scheduler.num_preemptions() > 0 && a->tokens.size() < a->max_length && b->num_computed == 0) {
      EXPECT_TRUE(b->block_tables[0].blocks.empty());
      EXPECT_EQ(b->block_tables[1].num_freed, 0U);
    }
  });
  EXPECT_TRUE(a_runs) << "the earliest is never preempted";
  EXPECT_GT(scheduler.num_preemptions(), 0U);
  EXPECT_EQ(b->tokens.size(), 310U);
}

// Two windows of at most 3 blocks: no answer is too long for both to run to their ends together.
TEST(KvSpan, WindowsThatFitTogetherNeverGiveWay) {
  std::vector<std::size_t> const blocks{2 * 3 + 1};
  SchedulerLimits const limits{.max_num_seqs = 2, .max_num_batched_tokens = 16, .max_model_len = 2000};
  Scheduler scheduler(limits, {window(32)}, blocks);
  test::KvOracle oracle({window(32)}, blocks);
  auto const a = sequence(1, 10, 900);
  auto const b = sequence(2, 50, 900);
  scheduler.submit(*a);
  scheduler.submit(*b);
  run_all(scheduler, oracle, [] {});
  EXPECT_EQ(scheduler.num_preemptions(), 0U);
}

TEST(KvSpan, UsageIsThatOfTheFullestGroup) {
  SchedulerLimits const limits{.max_num_seqs = 1, .max_num_batched_tokens = 64, .max_model_len = 1000};
  Scheduler scheduler(limits, {kFull, window(16)}, {100, 8});
  auto const s = sequence(1, 64, 500);
  scheduler.submit(*s);
  (void)scheduler.schedule();
  EXPECT_EQ(scheduler.kv_usage(), 4.0 / 8) << "the window's";
  scheduler.complete_step();
  EXPECT_EQ(scheduler.kv_usage(), 1.0 / 8);
  for (std::size_t i = 0; i < 440; ++i) {
    s->tokens.push_back(1);
    (void)scheduler.schedule();
    scheduler.complete_step();
  }
  EXPECT_EQ(scheduler.kv_usage(), 32.0 / 100) << "the whole sequence's";
}

TEST(KvSpanDeathTest, TokensWithoutBlocksAreOurMistake) {
  StepBatch batch(
      {.max_tokens = 8, .max_sequences = 1, .block_tokens = kBlock, .max_blocks_per_sequence = 4, .most_held = {4}});
  auto const s = sequence(1, 20, 4);
  s->block_tables = {{.blocks = {kNoKvBlock, 3}, .num_freed = 1}};
  s->num_computed = 12;
  EXPECT_DEATH(batch.add(*s, 4), "blocks \\[1,2\\) of sequence 1 in group 0 for 1");
  s->num_computed = 16;
  batch.add(*s, 4);
}

}  // namespace
}  // namespace expertmesh
