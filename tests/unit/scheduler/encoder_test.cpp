// Sequences whose prompt goes to an encoder: what it takes when, who decodes meanwhile, and whose blocks are whose.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

#include "coordinator/scheduler/scheduler.h"

namespace expertmesh {
namespace {

std::vector<KvCacheSpec> groups() {
  std::vector<KvCacheSpec> list(2);
  list[1].kind = KvCacheKind::cross;
  return list;
}

Sequence sequence(std::uint64_t id, std::size_t input, std::size_t max_new) {
  Sequence s;
  s.id = SequenceId(id);
  s.input.assign(input, static_cast<TokenId>(id));
  s.tokens = {0};
  s.tokens.reserve(1 + max_new);
  s.prompt_length = 1;
  s.max_length = 1 + max_new;
  return s;
}

SchedulerLimits limits(std::size_t tokens) {
  return {.max_num_seqs = 4, .max_num_batched_tokens = tokens, .max_model_len = 64, .num_expert_counts = 3};
}

TEST(EncoderScheduling, WholeInputsWhileTheyFitThenTheDecoderStarts) {
  Scheduler scheduler(limits(32), groups(), {16, 16});
  Sequence a = sequence(1, 20, 4);
  Sequence b = sequence(2, 12, 4);
  Sequence c = sequence(3, 5, 4);
  for (Sequence* s : {&a, &b, &c}) scheduler.submit(*s);
  EXPECT_EQ(a.expert_counts.next.size(), 3U);
  EXPECT_EQ(scheduler.schedule().num_tokens(), 0U);
  EncoderBatch const& inputs = scheduler.encoder_batch();
  ASSERT_EQ(inputs.sequences().size(), 2U);  // 32 tokens
  EXPECT_EQ(inputs.num_tokens(), 32U);
  EXPECT_EQ(inputs.ids()[19], 1);
  EXPECT_EQ(inputs.ids()[20], 2);
  EXPECT_EQ(inputs.places().positions[20], 0U);
  EXPECT_EQ(inputs.places().last[0], 19U);
  EXPECT_EQ(inputs.places().last[31], 11U);
  scheduler.complete_encoding();
  scheduler.complete_step();
  scheduler.check_integrity();

  StepBatch const& batch = scheduler.schedule();
  EXPECT_EQ(batch.num_tokens(), 2U);
  EXPECT_EQ(batch.places()[1].last[0], 19U);
  EXPECT_EQ(batch.places()[1].last[1], 11U);
  EXPECT_TRUE(batch.places()[0].last.empty());
  ASSERT_EQ(scheduler.encoder_batch().sequences().size(), 1U);
  EXPECT_EQ(scheduler.encoder_batch().sequences()[0], &c);
  scheduler.complete_encoding();
  scheduler.complete_step();
  a.tokens.push_back(5);
  b.tokens.push_back(5);
  EXPECT_EQ(scheduler.schedule().num_tokens(), 3U);
  EXPECT_TRUE(scheduler.encoder_batch().empty());
}

TEST(EncoderScheduling, ALongInputStaysUntilItIsDone) {
  Scheduler scheduler(limits(16), groups(), {16, 16});
  Sequence a = sequence(1, 4, 20);
  Sequence b = sequence(2, 60, 4);
  scheduler.submit(a);
  (void)scheduler.schedule();
  scheduler.complete_encoding();
  scheduler.complete_step();
  scheduler.submit(b);
  std::uint64_t id = 0;
  for (int step = 0; step < 10; ++step) {
    EXPECT_EQ(scheduler.schedule(7).num_tokens(), 1U) << "a goes on";
    ASSERT_EQ(scheduler.encoder_batch().num_tokens(), 60U);
    EXPECT_EQ(scheduler.encoder_batch().budget(), 7U);
    if (step == 0) id = scheduler.encoder_batch().id();
    EXPECT_EQ(scheduler.encoder_batch().id(), id);
    scheduler.complete_step();
    a.tokens.push_back(1);
  }
  scheduler.complete_encoding();
  EXPECT_EQ(scheduler.schedule().num_tokens(), 2U);
}

TEST(EncoderScheduling, WhoLeavesTakesTheBatchAlong) {
  Scheduler scheduler(limits(32), groups(), {16, 16});
  Sequence a = sequence(1, 10, 4);
  Sequence b = sequence(2, 10, 4);
  scheduler.submit(a);
  scheduler.submit(b);
  (void)scheduler.schedule();
  std::uint64_t const id = scheduler.encoder_batch().id();
  scheduler.remove(a);
  EXPECT_TRUE(scheduler.encoder_batch().empty());
  (void)scheduler.schedule();
  EXPECT_NE(scheduler.encoder_batch().id(), id);
  ASSERT_EQ(scheduler.encoder_batch().sequences().size(), 1U);
  EXPECT_EQ(scheduler.encoder_batch().sequences()[0], &b);
}

TEST(EncoderScheduling, WhoGaveItsBlocksBackIsEncodedAgain) {
  Scheduler scheduler(limits(32), groups(), {5, 5});  // blocks of 16: room for the growth of one
  Sequence a = sequence(1, 20, 60);
  Sequence b = sequence(2, 20, 40);
  scheduler.submit(a);
  scheduler.submit(b);
  bool preempted = false;
  for (int step = 0; step < 60; ++step) {
    StepBatch const& batch = scheduler.schedule();
    if (!scheduler.encoder_batch().empty()) scheduler.complete_encoding();
    std::vector<Sequence*> const ran(batch.sequences().begin(), batch.sequences().end());
    scheduler.complete_step();
    scheduler.check_integrity();
    for (Sequence* s : ran)
      if (s->num_pending() == 0 && s->tokens.size() < s->max_length) s->tokens.push_back(1);
    if (scheduler.num_preemptions() > 0 && !preempted) {
      preempted = true;
      EXPECT_FALSE(b.encoded);
      EXPECT_EQ(b.num_computed, 0U);
    }
  }
  EXPECT_TRUE(preempted);
}

// Any mix of lengths, arrivals and departures: blocks add up, everybody ends, inputs come before tokens.
TEST(EncoderScheduling, RandomCrowdsEnd) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 rng(seed);
    SchedulerLimits const some{.max_num_seqs = 1 + rng() % 5,
                               .max_num_batched_tokens = 5 + rng() % 40,
                               .max_model_len = 64,
                               .num_expert_counts = 0};
    Scheduler scheduler(some, groups(), {4 + rng() % 9, 4 + rng() % 9});
    std::deque<Sequence> all;
    std::vector<Sequence*> left;
    std::size_t steps = 0;
    for (std::uint64_t id = 1; id <= 25 || !left.empty(); ++steps) {
      ASSERT_LT(steps, 20000U) << "seed " << seed;
      if (id <= 25 && rng() % 3 == 0) {
        left.push_back(&all.emplace_back(sequence(id++, 1 + rng() % 64, 1 + rng() % 63)));
        scheduler.submit(*left.back());
      }
      StepBatch const& batch = scheduler.schedule(1 + rng() % 20);
      for (Sequence const* s : batch.sequences()) ASSERT_FALSE(s->awaits_encoder());
      EncoderBatch const& inputs = scheduler.encoder_batch();
      ASSERT_TRUE(inputs.empty() || inputs.budget() > 0);
      if (!inputs.empty() && rng() % 2 == 0) scheduler.complete_encoding();
      std::vector<Sequence*> const ran(batch.sequences().begin(), batch.sequences().end());
      scheduler.complete_step();
      scheduler.check_integrity();
      for (Sequence* s : ran) {
        if (s->num_pending() > 0) continue;
        if (s->tokens.size() + 1 < s->max_length && rng() % 50 != 0) {
          s->tokens.push_back(1);
        } else {
          scheduler.remove(*s);
          std::erase(left, s);
        }
      }
      if (!left.empty() && rng() % 60 == 0) {  // a client went away
        Sequence* const s = left[rng() % left.size()];
        scheduler.remove(*s);
        std::erase(left, s);
      }
      scheduler.check_integrity();
    }
    EXPECT_EQ(scheduler.kv_usage(), 0);
  }
}

}  // namespace
}  // namespace expertmesh
