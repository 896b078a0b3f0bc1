#include "coordinator/scheduler/scheduler.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

namespace {
// One for all groups: positions of a sequence cross block borders in all of them at once.
std::size_t common_block_tokens(std::vector<KvCacheSpec> const& groups) {
  EM_CHECK(!groups.empty(), "no KV group");
  for (auto const& group : groups)
    EM_CHECK(group.block_tokens > 0 && group.block_tokens == groups.front().block_tokens,
             "KV blocks of " << group.block_tokens << " and " << groups.front().block_tokens << " tokens");
  return groups.front().block_tokens;
}
}  // namespace

Scheduler::Scheduler(SchedulerLimits const& limits, std::vector<KvCacheSpec> const& groups,
                     std::vector<std::size_t> const& blocks)
    : limits_(limits),
      block_tokens_(common_block_tokens(groups)),
      pools_(blocks.begin(), blocks.end()),
      batch_({.max_tokens = limits.max_num_batched_tokens,
              .max_sequences = limits.max_num_seqs,
              .max_blocks_per_sequence = blocks_for(limits.max_model_len),
              .num_kv_groups = groups.size()}) {
  EM_CHECK(blocks.size() == groups.size(), groups.size() << " KV groups, blocks for " << blocks.size());
  EM_CHECK(limits.max_num_batched_tokens >= limits.max_num_seqs,
           "tokens a step " << limits.max_num_batched_tokens << ", sequences " << limits.max_num_seqs);
  running_.reserve(limits.max_num_seqs);
  preempted_.reserve(limits.max_num_seqs);  // they ran together
}

std::size_t Scheduler::blocks_for(std::size_t tokens) const {
  return (tokens + block_tokens_ - 1) / block_tokens_;
}

bool Scheduler::fits_ever(std::size_t max_length) const {
  return max_length <= limits_.max_model_len && std::ranges::all_of(pools_, [&](KvBlockPool const& pool) {
           return blocks_for(max_length) <= pool.num_blocks();
         });
}

void Scheduler::submit(Sequence& sequence) {
  EM_CHECK(fits_ever(sequence.max_length) && !sequence.tokens.empty(),
           "sequence of " << sequence.max_length << " tokens, " << sequence.tokens.size() << " of them known");
  sequence.block_tables.resize(pools_.size());  // here, so that schedule() does not allocate
  for (auto& table : sequence.block_tables) table.reserve(blocks_for(sequence.max_length));
  waiting_.push_back(&sequence);
}

void Scheduler::remove(Sequence& sequence) {
  batch_.forget(sequence);
  if (auto const place = std::ranges::find(running_, &sequence); place != running_.end()) {
    running_.erase(place);
    return free_blocks(sequence);
  }
  if (auto const place = std::ranges::find(preempted_, &sequence); place != preempted_.end()) {
    preempted_.erase(place);
    return;
  }
  auto const place = std::ranges::find(waiting_, &sequence);
  EM_CHECK(place != waiting_.end(), "sequence " << sequence.id << " is not here");
  waiting_.erase(place);
}

bool Scheduler::has_free_blocks(std::size_t count) const {
  return std::ranges::all_of(pools_, [&](KvBlockPool const& pool) { return pool.num_free() >= count; });
}

void Scheduler::grow(Sequence& sequence, std::size_t blocks) {
  for (std::size_t g = 0; g < pools_.size(); ++g)
    while (sequence.block_tables[g].size() < blocks) sequence.block_tables[g].push_back(pools_[g].take());
}

void Scheduler::free_blocks(Sequence& sequence) {
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    for (std::uint32_t block : sequence.block_tables[g]) pools_[g].release(block);
    sequence.block_tables[g].clear();
  }
}

void Scheduler::preempt_last() {
  Sequence& last = *running_.back();
  running_.pop_back();
  free_blocks(last);
  last.num_computed = 0;
  preempted_.push_back(&last);
  ++num_preemptions_;
}

// Blocks for all tokens of running_[index]; false if it had to give way itself.
bool Scheduler::make_room(std::size_t index) {
  Sequence& sequence = *running_[index];
  std::size_t const blocks = blocks_for(sequence.tokens.size());
  std::size_t const held = sequence.block_tables.front().size();
  while (blocks > held && !has_free_blocks(blocks - held)) {
    preempt_last();
    if (index == running_.size()) return false;
  }
  grow(sequence, blocks);
  return true;
}

Sequence* Scheduler::next_to_admit() const {
  if (!preempted_.empty()) return preempted_.back();
  return waiting_.empty() ? nullptr : waiting_.front();
}

void Scheduler::admit_next() {
  running_.push_back(next_to_admit());
  if (!preempted_.empty())
    preempted_.pop_back();
  else
    waiting_.pop_front();
  grow(*running_.back(), blocks_for(running_.back()->tokens.size()));
}

StepBatch const& Scheduler::schedule(std::size_t max_prefill_tokens) {
  batch_.clear();
  // First all who decode: a victim of theirs arrived later, so it is not yet in the batch.
  for (std::size_t i = 0; i < running_.size(); ++i)
    if (running_[i]->num_pending() == 1 && make_room(i)) batch_.add(*running_[i], 1);

  std::size_t budget = limits_.max_num_batched_tokens - batch_.num_tokens();
  if (batch_.num_tokens() > 0) budget = std::min(budget, max_prefill_tokens);
  auto const prefill = [&](Sequence& sequence) {
    std::size_t const count = std::min(sequence.num_pending(), budget);
    if (count == 0) return;
    batch_.add(sequence, count);
    budget -= count;
  };
  for (Sequence* s : running_)
    if (s->num_pending() > 1) prefill(*s);
  while (budget > 0 && running_.size() < limits_.max_num_seqs) {
    Sequence* const next = next_to_admit();
    // One block more for each that runs: who starts now should not have to give way at once.
    if (!next || !has_free_blocks(blocks_for(next->tokens.size()) + running_.size())) break;
    admit_next();
    prefill(*next);
  }
  batch_.seal();
  return batch_;
}

void Scheduler::complete_step() {
  for (std::size_t i = 0; i < batch_.sequences().size(); ++i)
    if (Sequence* sequence = batch_.sequences()[i])
      sequence->num_computed += batch_.offsets()[i + 1] - batch_.offsets()[i];
}

double Scheduler::kv_usage() const {
  double usage = 0;
  for (auto const& pool : pools_)
    if (pool.num_blocks() > 0)
      usage = std::max(usage, static_cast<double>(pool.num_used()) / static_cast<double>(pool.num_blocks()));
  return usage;
}

void Scheduler::check_integrity() const {
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    pools_[g].check_integrity();
    std::size_t held = 0;
    for (Sequence const* s : running_) held += s->block_tables[g].size();
    EM_CHECK(held == pools_[g].num_used(),
             "running sequences hold " << held << " blocks, " << pools_[g].num_used() << " are in use");
  }
}

}  // namespace expertmesh
