#include "coordinator/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace expertmesh {
namespace {

std::vector<KvCacheSpec> groups(std::size_t count) {
  return std::vector<KvCacheSpec>(count);
}

Sequence sequence(std::uint64_t id, std::size_t prompt, std::size_t max_new) {
  Sequence s;
  s.id = SequenceId(id);
  s.tokens.assign(prompt, static_cast<TokenId>(id));
  s.prompt_length = prompt;
  s.max_length = prompt + max_new;
  return s;
}

TEST(Scheduler, PrefillIsCutIntoChunksOfTheBudget) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 10, .max_model_len = 64}, groups(1), {16});
  Sequence s = sequence(1, 25, 4);
  scheduler.submit(s);
  for (std::size_t expected : {10, 10, 5}) {
    StepBatch const& batch = scheduler.schedule();
    EXPECT_EQ(batch.num_tokens(), expected);
    EXPECT_EQ(batch.logit_rows().size(), s.num_computed + expected == 25 ? 1U : 0U)
        << "only the prompt's end is sampled";
    EXPECT_EQ(batch.positions()[0], s.num_computed);
    scheduler.complete_step();
  }
  EXPECT_EQ(scheduler.schedule().num_tokens(), 0U) << "nothing to do until a token is appended";
  s.tokens.push_back(3);
  EXPECT_EQ(scheduler.schedule().num_tokens(), 1U);
}

TEST(Scheduler, DecodesGoBeforePrefill) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 8, .max_model_len = 64}, groups(1), {16});
  Sequence a = sequence(1, 4, 8);
  Sequence b = sequence(2, 30, 2);
  scheduler.submit(a);
  (void)scheduler.schedule();
  scheduler.complete_step();
  a.tokens.push_back(1);
  scheduler.submit(b);
  StepBatch const& batch = scheduler.schedule();
  ASSERT_EQ(batch.sequences().size(), 2U);
  EXPECT_EQ(batch.sequences()[0], &a);
  EXPECT_EQ(batch.offsets()[1], 1U);
  EXPECT_EQ(batch.offsets()[2], 8U);
}

TEST(Scheduler, WaitsForBlocksAndNeverOvertakes) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_model_len = 64}, groups(2), {4, 4});
  EXPECT_FALSE(scheduler.fits_ever(65));
  Sequence a = sequence(1, 30, 18);  // 3 blocks
  Sequence b = sequence(2, 20, 12);  // 2 blocks: has to wait
  Sequence c = sequence(3, 4, 4);    // 1 block: would fit, but b was first
  for (Sequence* s : {&a, &b, &c}) scheduler.submit(*s);
  (void)scheduler.schedule();
  EXPECT_EQ(scheduler.num_running(), 1U);
  EXPECT_EQ(scheduler.num_waiting(), 2U);
  scheduler.complete_step();
  scheduler.remove(a);
  (void)scheduler.schedule();
  EXPECT_EQ(scheduler.num_running(), 2U);
  scheduler.check_integrity();
}

TEST(Scheduler, BlockTablesReachEveryPositionAndNoBlockIsShared) {
  Scheduler scheduler({.max_num_seqs = 3, .max_num_batched_tokens = 100, .max_model_len = 64}, groups(1), {12});
  Sequence a = sequence(1, 33, 10);
  Sequence b = sequence(2, 17, 3);
  scheduler.submit(a);
  scheduler.submit(b);
  StepBatch const& batch = scheduler.schedule();
  TokenPlaces const& places = batch.places()[0];
  std::map<std::uint32_t, std::uint32_t> owner;
  for (std::size_t t = 0; t < batch.num_tokens(); ++t) {
    std::uint32_t const s = places.sequences[t];
    std::uint32_t const entry = places.table_offsets[s] + places.positions[t] / 16;
    ASSERT_LT(entry, places.table_offsets[s + 1]);
    EXPECT_EQ(owner.try_emplace(places.block_tables[entry], s).first->second, s);
  }
}

TEST(Scheduler, PromptLogitsAskForEveryRowButKeepOneSample) {
  Scheduler scheduler({.max_num_seqs = 1, .max_num_batched_tokens = 4, .max_model_len = 64}, groups(1), {4});
  Sequence s = sequence(1, 6, 2);
  s.prompt_logits = true;
  scheduler.submit(s);
  EXPECT_EQ(scheduler.schedule().logit_rows().size(), 4U);
  scheduler.complete_step();
  auto const rows = scheduler.schedule().logit_rows();
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_FALSE(rows[0].sample);
  EXPECT_TRUE(rows[1].sample);
}

// Random arrivals, answers and aborts; after every step nothing leaks, no budget is exceeded, and all end.
TEST(Scheduler, RandomLifeKeepsItsBooks) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 rng(seed);
    SchedulerLimits const limits{
        .max_num_seqs = 1 + rng() % 6, .max_num_batched_tokens = 8 + rng() % 40, .max_model_len = 100};
    std::size_t const num_groups = 1 + rng() % 2;
    Scheduler scheduler(limits, groups(num_groups), std::vector<std::size_t>(num_groups, 8));
    std::vector<std::unique_ptr<Sequence>> alive;
    std::uint64_t arrived = 0;
    std::uint64_t last_admitted = 0;
    for (int step = 0; step < 400; ++step) {
      if (arrived < 60 && rng() % 3 == 0) {
        alive.push_back(std::make_unique<Sequence>(sequence(++arrived, 1 + rng() % 60, 1 + rng() % 40)));
        scheduler.submit(*alive.back());
      }
      StepBatch const& batch = scheduler.schedule();
      EXPECT_LE(batch.num_tokens(), limits.max_num_batched_tokens);
      EXPECT_LE(scheduler.num_running(), limits.max_num_seqs);
      for (Sequence* s : batch.sequences())
        if (s->num_computed == 0) {
          EXPECT_GT(s->id.value(), last_admitted) << "first come, first served";
          last_admitted = s->id.value();
        }
      std::vector<Sequence*> sampled;
      for (LogitRow const& row : batch.logit_rows()) sampled.push_back(batch.sequences()[row.sequence]);
      scheduler.complete_step();
      std::vector<Sequence*> ended;
      for (Sequence* s : sampled) {
        if (s->tokens.size() + 1 >= s->max_length)
          ended.push_back(s);
        else
          s->tokens.push_back(0);
      }
      if (!alive.empty() && rng() % 10 == 0)
        if (Sequence* s = alive[rng() % alive.size()].get(); std::ranges::find(ended, s) == ended.end())
          ended.push_back(s);
      for (Sequence* s : ended) {
        scheduler.remove(*s);
        std::erase_if(alive, [&](auto const& p) { return p.get() == s; });
      }
      scheduler.check_integrity();
    }
    for (int step = 0; step < 20000 && !alive.empty(); ++step) {
      StepBatch const& batch = scheduler.schedule();
      ASSERT_GT(batch.num_tokens(), 0U) << "work waits, but nothing runs";
      std::vector<Sequence*> sampled;
      for (LogitRow const& row : batch.logit_rows()) sampled.push_back(batch.sequences()[row.sequence]);
      scheduler.complete_step();
      for (Sequence* s : sampled) {
        s->tokens.push_back(0);
        if (s->tokens.size() < s->max_length) continue;
        scheduler.remove(*s);
        std::erase_if(alive, [&](auto const& p) { return p.get() == s; });
      }
    }
    EXPECT_TRUE(scheduler.empty());
    EXPECT_EQ(scheduler.kv_usage(), 0);
    scheduler.check_integrity();
  }
}

TEST(KvBlockPool, CountsReferences) {
  KvBlockPool pool(2);
  std::uint32_t const a = pool.take();
  pool.share(a);
  pool.release(a);
  EXPECT_EQ(pool.num_used(), 1U);
  pool.release(a);
  EXPECT_EQ(pool.num_used(), 0U);
  EXPECT_DEATH(pool.release(a), "free already");
  pool.check_integrity();
}

}  // namespace
}  // namespace expertmesh
