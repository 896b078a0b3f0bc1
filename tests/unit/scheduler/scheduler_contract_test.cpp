// What the engine relies on: every token runs once and in order, batches stay where they are, removal at any time.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <set>

#include "coordinator/scheduler/scheduler.h"
#include "tests/unit/scheduler/kv_oracle.h"

namespace expertmesh {
namespace {

std::unique_ptr<Sequence> sequence(std::uint64_t id, std::size_t prompt, std::size_t max_new) {
  auto s = std::make_unique<Sequence>();
  s->id = SequenceId(id);
  for (std::size_t i = 0; i < prompt; ++i) s->tokens.push_back(static_cast<TokenId>(id * 1000 + i));
  s->prompt_length = prompt;
  s->max_length = prompt + max_new;
  return s;
}

// No block is in two tables of the batch.
void expect_own_blocks(StepBatch const& batch, std::size_t group) {
  TokenPlaces const& places = batch.places()[group];
  ASSERT_EQ(places.table_offsets.size(), batch.sequences().size());
  std::set<std::uint32_t> blocks;
  for (std::uint32_t block : places.block_tables)
    EXPECT_TRUE(block == kNoKvBlock || blocks.insert(block).second) << "block " << block;
}

// Two groups: what a layer may attend to, and blocks such that a sequence of 90 tokens fits.
struct Cache {
  std::vector<KvCacheSpec> groups;
  std::vector<std::size_t> blocks;
};
Cache random_cache(std::mt19937& rng, std::size_t step_tokens) {
  Cache cache{std::vector<KvCacheSpec>(2), {}};
  for (auto& group : cache.groups) {
    group.kind = std::array{KvCacheKind::full, KvCacheKind::window, KvCacheKind::chunked}[rng() % 3];
    if (group.has_span()) group.span_tokens = 1 + rng() % 50;
    cache.blocks.push_back(group.most_blocks(90, step_tokens) + rng() % 8);
  }
  return cache;
}

TEST(SchedulerContract, EveryTokenRunsOnceInOrderAndNoStepIsLeftHalfEmpty) {
  std::size_t preemptions = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    std::mt19937 rng(seed);
    SchedulerLimits const limits{
        .max_num_seqs = 1 + rng() % 5, .max_num_batched_tokens = 5 + rng() % 30, .max_model_len = 90};
    Cache const cache = random_cache(rng, limits.max_num_batched_tokens);
    Scheduler scheduler(limits, cache.groups, cache.blocks);
    test::KvOracle oracle(cache.groups, cache.blocks);
    std::vector<std::unique_ptr<Sequence>> all;
    Sequence const* earliest = nullptr;  // of those that run
    std::size_t earliest_computed = 0;
    std::size_t num_ended = 0;
    for (std::uint64_t step = 0; num_ended < 25; ++step) {
      ASSERT_LT(step, 5000U);
      if (all.size() < 25 && rng() % 4 == 0) {
        all.push_back(sequence(all.size() + 1, 1 + rng() % 50, 1 + rng() % 40));
        all.back()->prompt_logits = rng() % 3 == 0;
        scheduler.submit(*all.back());
      }
      StepBatch const& batch = scheduler.schedule();
      ASSERT_EQ(batch.num_tokens() == 0, scheduler.empty()) << "work waits, but nothing runs";
      if (earliest) {
        ASSERT_EQ(earliest->num_computed, earliest_computed) << "the earliest is never preempted";
      }
      ASSERT_LE(batch.num_tokens(), limits.max_num_batched_tokens);
      for (std::size_t g : {0U, 1U}) expect_own_blocks(batch, g);
      bool prefill_seen = false;
      bool work_left = false;  // of a sequence that runs
      for (std::uint32_t s = 0; s < batch.sequences().size(); ++s) {
        Sequence const& sequence = *batch.sequences()[s];
        std::uint32_t const begin = batch.offsets()[s];
        std::uint32_t const end = batch.offsets()[s + 1];
        ASSERT_LT(begin, end);
        bool const decodes = sequence.num_pending() == 1 && sequence.tokens.size() > sequence.prompt_length;
        ASSERT_FALSE(prefill_seen && decodes) << "decodes go first";
        prefill_seen = prefill_seen || sequence.num_pending() > 1;
        for (std::uint32_t row = begin; row < end; ++row) {
          ASSERT_EQ(batch.positions()[row], sequence.num_computed + (row - begin));
          ASSERT_EQ(batch.ids()[row], sequence.tokens[batch.positions()[row]]);
          ASSERT_EQ(batch.prompt_lengths()[row], sequence.prompt_length);
          ASSERT_EQ(batch.places()[0].sequences[row], s);
        }
        work_left = work_left || end - begin < sequence.num_pending();
      }
      if (work_left) {
        EXPECT_EQ(batch.num_tokens(), limits.max_num_batched_tokens) << "a chunk was cut without need";
      }
      std::set<std::uint32_t> rows;
      std::vector<Sequence*> sampled;
      for (LogitRow const& row : batch.logit_rows()) {
        EXPECT_TRUE(rows.insert(row.row).second);
        EXPECT_EQ(batch.positions()[row.row], row.position);
        Sequence* s = batch.sequences()[row.sequence];
        EXPECT_TRUE(row.sample || s->prompt_logits);
        EXPECT_EQ(row.sample, row.position + 1 == s->tokens.size());
        if (row.sample) sampled.push_back(s);
      }
      ASSERT_NO_FATAL_FAILURE(oracle.run(batch)) << "seed " << seed;
      if (rng() % 8 == 0) continue;  // the step is given up
      scheduler.complete_step();
      for (Sequence* s : sampled) {
        s->tokens.push_back(static_cast<TokenId>(step));
        if (s->tokens.size() < s->max_length) continue;
        scheduler.remove(*s);
        ++num_ended;
      }
      scheduler.check_integrity();
      auto const first = std::ranges::find_if(
          all, [](auto const& s) { return s->tokens.size() < s->max_length && s->num_computed > 0; });
      earliest = first == all.end() ? nullptr : first->get();
      if (earliest) earliest_computed = earliest->num_computed;
    }
    preemptions += scheduler.num_preemptions();
    for (auto const& s : all) EXPECT_EQ(s->num_computed + 1, s->max_length) << "the last token is not run";
    EXPECT_TRUE(scheduler.empty());
    EXPECT_EQ(scheduler.kv_usage(), 0);
  }
  EXPECT_GT(preemptions, 50U) << "the caches were not small enough";
}

TEST(SchedulerContract, ASequenceMayLeaveWhileItsStepIsUnderWay) {
  Scheduler scheduler({.max_num_seqs = 2, .max_num_batched_tokens = 16, .max_model_len = 64},
                      std::vector<KvCacheSpec>(1), {8});
  auto a = sequence(1, 4, 4);
  auto b = sequence(2, 5, 4);
  scheduler.submit(*a);
  scheduler.submit(*b);
  StepBatch const& batch = scheduler.schedule();
  scheduler.remove(*a);
  a.reset();
  EXPECT_EQ(batch.sequences()[0], nullptr);
  scheduler.complete_step();
  EXPECT_EQ(b->num_computed, 5U);
  EXPECT_EQ(scheduler.num_running(), 1U);
  scheduler.check_integrity();
}

TEST(SchedulerContract, AStepThatIsGivenUpIsScheduledAgain) {
  Scheduler scheduler({.max_num_seqs = 2, .max_num_batched_tokens = 6, .max_model_len = 64},
                      std::vector<KvCacheSpec>(1), {8});
  auto a = sequence(1, 10, 4);
  scheduler.submit(*a);
  (void)scheduler.schedule();
  StepBatch const& again = scheduler.schedule();
  EXPECT_EQ(again.num_tokens(), 6U);
  EXPECT_EQ(again.positions()[0], 0U);
}

TEST(SchedulerContract, BatchesOfAnySizeLieAtTheSamePlace) {
  SchedulerLimits const limits{.max_num_seqs = 8, .max_num_batched_tokens = 64, .max_model_len = 64};
  Scheduler scheduler(limits, std::vector<KvCacheSpec>(1), {40});
  auto const addresses = [](StepBatch const& b) {
    return std::vector<void const*>{
        b.ids().data(),       b.positions().data(),  b.prompt_lengths().data(),        b.offsets().data(),
        b.sequences().data(), b.logit_rows().data(), b.places()[0].block_tables.data()};
  };
  auto const at_first = addresses(scheduler.schedule());
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (std::uint64_t id = 1; id <= 8; ++id) {
    sequences.push_back(sequence(id, 60, 4));
    sequences.back()->prompt_logits = true;
    scheduler.submit(*sequences.back());
  }
  for (int step = 0; step < 8; ++step) {
    StepBatch const& batch = scheduler.schedule();
    EXPECT_EQ(batch.num_tokens(), 64U - (step == 7 ? 32U : 0U));
    EXPECT_EQ(addresses(batch), at_first);
    scheduler.complete_step();
  }
}

TEST(SchedulerContract, AbortedBeforeItsTurnItLeavesNothing) {
  Scheduler scheduler({.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 64},
                      std::vector<KvCacheSpec>(1), {4});
  auto a = sequence(1, 8, 8);
  auto b = sequence(2, 8, 8);
  auto c = sequence(3, 8, 8);
  for (auto* s : {&a, &b, &c}) scheduler.submit(**s);
  (void)scheduler.schedule();
  scheduler.remove(*b);
  scheduler.complete_step();
  scheduler.remove(*a);
  ASSERT_EQ(scheduler.schedule().sequences().size(), 1U);
  EXPECT_EQ(scheduler.schedule().sequences()[0], c.get());
  scheduler.check_integrity();
}

TEST(SchedulerContract, WhatNeverFitsIsKnownBefore) {
  Scheduler scheduler({.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 100},
                      std::vector<KvCacheSpec>(2), {7, 3});
  EXPECT_TRUE(scheduler.fits_ever(48));
  EXPECT_FALSE(scheduler.fits_ever(49)) << "the smaller group decides";
  Scheduler roomy({.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 100}, std::vector<KvCacheSpec>(1),
                  {70});
  EXPECT_TRUE(roomy.fits_ever(100));
  EXPECT_FALSE(roomy.fits_ever(101));
}

TEST(SchedulerContractDeathTest, RefusesLimitsThatContradictEachOther) {
  SchedulerLimits const limits{.max_num_seqs = 2, .max_num_batched_tokens = 8, .max_model_len = 64};
  EXPECT_DEATH(Scheduler(limits, std::vector<KvCacheSpec>(1), {4, 4}), "1 KV groups, blocks for 2");
  std::vector<KvCacheSpec> mixed(2);
  mixed[1].block_tokens = 32;
  EXPECT_DEATH(Scheduler(limits, mixed, {4, 4}), "KV blocks of 32 and 16 tokens");
  EXPECT_DEATH(Scheduler(limits, {{.kind = KvCacheKind::window, .layers = {}}}, {4}), "KV group window of 0 tokens");
  EXPECT_DEATH(Scheduler({.max_num_seqs = 9, .max_num_batched_tokens = 8, .max_model_len = 64},
                         std::vector<KvCacheSpec>(1), {4}),
               "tokens a step 8, sequences 9");
  Scheduler scheduler(limits, std::vector<KvCacheSpec>(1), {4});
  auto stranger = sequence(5, 3, 3);
  EXPECT_DEATH(scheduler.remove(*stranger), "sequence 5 is not here");
  auto empty = sequence(6, 0, 3);
  EXPECT_DEATH(scheduler.submit(*empty), "0 of them known");
}

}  // namespace
}  // namespace expertmesh
