#include "coordinator/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "coordinator/scheduler/prefill_budget.h"

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
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 96, .max_model_len = 64}, groups(2), {4, 4});
  EXPECT_FALSE(scheduler.fits_ever(65));
  Sequence a = sequence(1, 30, 18);  // 2 blocks
  Sequence b = sequence(2, 40, 12);  // 3 blocks: has to wait
  Sequence c = sequence(3, 4, 4);    // 1 block: would fit, but b was first
  for (Sequence* s : {&a, &b, &c}) scheduler.submit(*s);
  (void)scheduler.schedule();
  EXPECT_EQ(scheduler.num_running(), 1U);
  EXPECT_EQ(scheduler.num_waiting(), 2U);
  scheduler.complete_step();
  scheduler.remove(a);
  (void)scheduler.schedule();
  EXPECT_EQ(scheduler.num_running(), 1U) << "one block stays free for b to grow";
  scheduler.check_integrity();
}

// Runs a step; every sequence whose next token is due gets one.
void step(Scheduler& scheduler) {
  StepBatch const& batch = scheduler.schedule();
  std::vector<Sequence*> sampled;
  for (LogitRow const& row : batch.logit_rows())
    if (row.sample) sampled.push_back(batch.sequences()[row.sequence]);
  scheduler.complete_step();
  for (Sequence* s : sampled) s->tokens.push_back(static_cast<TokenId>(s->tokens.size()));
  scheduler.check_integrity();
}

TEST(Scheduler, TheLatestGivesWayAndComesBackWithAllItsTokens) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_model_len = 64}, groups(1), {4});
  Sequence a = sequence(1, 16, 48);
  Sequence b = sequence(2, 10, 30);
  Sequence late = sequence(3, 1, 1);
  scheduler.submit(a);
  scheduler.submit(b);
  step(scheduler);
  ASSERT_EQ(scheduler.num_running(), 2U);
  scheduler.submit(late);
  while (scheduler.num_preemptions() == 0) step(scheduler);
  EXPECT_EQ(b.num_computed, 0U);
  EXPECT_TRUE(b.block_tables[0].blocks.empty());
  std::vector<TokenId> const kept = b.tokens;
  EXPECT_GT(kept.size(), 10U) << "what was sampled is not forgotten";
  EXPECT_GT(a.tokens.size(), 16U);
  EXPECT_EQ(scheduler.num_waiting(), 2U) << "the late one must not overtake";
  while (a.tokens.size() < a.max_length) {
    step(scheduler);
    EXPECT_GT(a.num_computed, 0U) << "the earliest is never preempted";
  }
  scheduler.remove(a);
  StepBatch const& batch = scheduler.schedule();
  ASSERT_GE(batch.sequences().size(), 1U);
  EXPECT_EQ(batch.sequences()[0], &b);
  EXPECT_EQ(batch.offsets()[1], kept.size()) << "prompt and answer are computed again";
  EXPECT_EQ(batch.logit_rows()[0].position + 1, kept.size());
}

TEST(Scheduler, APreemptedSequenceCanBeRemoved) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_model_len = 64}, groups(1), {4});
  Sequence a = sequence(1, 16, 48);
  Sequence b = sequence(2, 10, 30);
  scheduler.submit(a);
  scheduler.submit(b);
  while (scheduler.num_preemptions() == 0) step(scheduler);
  scheduler.remove(b);
  EXPECT_EQ(scheduler.num_waiting(), 0U);
  scheduler.remove(a);
  EXPECT_TRUE(scheduler.empty());
  scheduler.check_integrity();
}

TEST(Scheduler, PromptsBesideDecodesAreCutToTheirBudget) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_model_len = 64}, groups(1), {16});
  Sequence a = sequence(1, 4, 8);
  Sequence b = sequence(2, 50, 2);
  scheduler.submit(a);
  step(scheduler);
  scheduler.submit(b);
  StepBatch const& batch = scheduler.schedule(5);
  EXPECT_EQ(batch.num_decodes(), 1U);
  EXPECT_EQ(batch.num_tokens(), 6U);
  scheduler.remove(a);
  EXPECT_EQ(scheduler.schedule(5).num_tokens(), 50U) << "nobody waits for a token: no cut";
}

TEST(PrefillBudget, LearnsWhatFitsIntoAStep) {
  EXPECT_GT(PrefillBudget(0).tokens(), 1000000U);
  PrefillBudget budget(0.1);
  EXPECT_EQ(budget.tokens(), PrefillBudget::kLeastTokens) << "nothing is known yet";
  for (int i = 0; i < 100; ++i) {
    budget.observe(0, 0.02);
    budget.observe(100, 0.02 + 100 * 0.0005);
  }
  EXPECT_NEAR(static_cast<double>(budget.tokens()), 160, 2) << "(0.1 - 0.02) / 0.0005";
  for (int i = 0; i < 100; ++i) budget.observe(0, 0.5);
  EXPECT_EQ(budget.tokens(), PrefillBudget::kLeastTokens) << "prompts go on, whatever decodes take";
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
    ASSERT_LT(entry, places.block_tables.size());
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
    std::vector<KvCacheSpec> kinds = groups(1 + rng() % 3);
    for (std::size_t g = 1; g < kinds.size(); ++g) {
      kinds[g].kind = rng() % 2 == 0 ? KvCacheKind::window : KvCacheKind::chunked;
      kinds[g].span_tokens = 1 + rng() % 80;
    }
    Scheduler scheduler(limits, kinds, std::vector<std::size_t>(kinds.size(), 8));
    std::vector<std::unique_ptr<Sequence>> alive;
    std::uint64_t arrived = 0;
    std::set<std::uint64_t> started;
    for (int step = 0; step < 400; ++step) {
      if (arrived < 60 && rng() % 3 == 0) {
        alive.push_back(std::make_unique<Sequence>(sequence(++arrived, 1 + rng() % 60, 1 + rng() % 40)));
        scheduler.submit(*alive.back());
      }
      StepBatch const& batch = scheduler.schedule();
      EXPECT_LE(batch.num_tokens(), limits.max_num_batched_tokens);
      EXPECT_LE(scheduler.num_running(), limits.max_num_seqs);
      std::uint64_t latest_running = 0;
      for (Sequence* s : batch.sequences()) {
        started.insert(s->id.value());
        latest_running = std::max(latest_running, s->id.value());
      }
      for (auto const& s : alive)
        if (!started.contains(s->id.value())) {
          EXPECT_GT(s->id.value(), latest_running) << "overtaken";
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
