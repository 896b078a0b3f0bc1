#include "coordinator/scheduler/scheduler.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

Scheduler::Scheduler(SchedulerLimits const& limits, std::vector<KvCacheSpec> const& groups,
                     std::vector<std::size_t> const& blocks)
    : limits_(limits),
      block_tokens_(groups.front().block_tokens),
      pools_(blocks.begin(), blocks.end()),
      batch_({.max_tokens = limits.max_num_batched_tokens,
              .max_sequences = limits.max_num_seqs,
              .max_blocks_per_sequence = blocks_for(limits.max_model_len),
              .num_kv_groups = groups.size()}) {
  EM_CHECK(limits.max_num_batched_tokens >= limits.max_num_seqs,
           "tokens a step " << limits.max_num_batched_tokens << ", sequences " << limits.max_num_seqs);
  running_.reserve(limits.max_num_seqs);
}

std::size_t Scheduler::blocks_for(std::size_t tokens) const {
  return (tokens + block_tokens_ - 1) / block_tokens_;
}

bool Scheduler::fits_ever(std::size_t max_length) const {
  return std::ranges::all_of(pools_,
                             [&](KvBlockPool const& pool) { return blocks_for(max_length) <= pool.num_blocks(); });
}

void Scheduler::submit(Sequence& sequence) {
  EM_CHECK(fits_ever(sequence.max_length) && !sequence.tokens.empty(),
           "sequence of " << sequence.max_length << " tokens");
  waiting_.push_back(&sequence);
}

void Scheduler::remove(Sequence& sequence) {
  if (auto const place = std::ranges::find(running_, &sequence); place != running_.end()) {
    running_.erase(place);
    for (std::size_t g = 0; g < pools_.size(); ++g)
      for (std::uint32_t block : sequence.block_tables[g]) pools_[g].release(block);
    sequence.block_tables.clear();
    return;
  }
  auto const place = std::ranges::find(waiting_, &sequence);
  EM_CHECK(place != waiting_.end(), "sequence " << sequence.id << " is not here");
  waiting_.erase(place);
}

bool Scheduler::reserve_blocks(Sequence& sequence) {
  std::size_t const count = blocks_for(sequence.max_length);
  if (std::ranges::any_of(pools_, [&](KvBlockPool const& pool) { return pool.num_free() < count; })) return false;
  sequence.block_tables.assign(pools_.size(), std::vector<std::uint32_t>(count));
  for (std::size_t g = 0; g < pools_.size(); ++g)
    for (std::uint32_t& block : sequence.block_tables[g]) block = pools_[g].take();
  return true;
}

StepBatch const& Scheduler::schedule() {
  batch_.clear();
  std::size_t budget = limits_.max_num_batched_tokens;
  auto const run = [&](Sequence& sequence) {
    std::size_t const count = std::min(sequence.num_pending(), budget);
    if (count == 0) return;
    batch_.add(sequence, count);
    budget -= count;
  };
  for (Sequence* s : running_)
    if (!s->in_prefill()) run(*s);
  for (Sequence* s : running_)
    if (s->in_prefill()) run(*s);
  while (budget > 0 && !waiting_.empty() && running_.size() < limits_.max_num_seqs &&
         reserve_blocks(*waiting_.front())) {
    running_.push_back(waiting_.front());
    waiting_.pop_front();
    run(*running_.back());
  }
  batch_.seal();
  return batch_;
}

void Scheduler::complete_step() {
  for (std::size_t i = 0; i < batch_.sequences().size(); ++i)
    batch_.sequences()[i]->num_computed += batch_.offsets()[i + 1] - batch_.offsets()[i];
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
