#include "coordinator/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {

namespace {
// One for all groups: the positions of a sequence cross block borders in all of them at once.
std::size_t common_block_tokens(std::vector<KvCacheSpec> const& groups) {
  EM_CHECK(!groups.empty(), "no KV group");
  for (auto const& group : groups) {
    EM_CHECK(group.block_tokens > 0 && group.block_tokens == groups.front().block_tokens,
             "KV blocks of " << group.block_tokens << " and " << groups.front().block_tokens << " tokens");
    EM_CHECK(!group.has_span() || group.span_tokens > 0, "KV group " << name_of(group.kind) << " of 0 tokens");
  }
  return groups.front().block_tokens;
}

std::vector<std::size_t> most_held(std::vector<KvCacheSpec> const& groups, SchedulerLimits const& limits) {
  std::vector<std::size_t> blocks;
  for (auto const& group : groups)
    blocks.push_back(group.most_blocks(limits.max_model_len, limits.max_num_batched_tokens));
  return blocks;
}

std::optional<std::size_t> cross_group(std::vector<KvCacheSpec> const& groups) {
  auto const place = std::ranges::find(groups, KvCacheKind::cross, &KvCacheSpec::kind);
  if (place == groups.end()) return std::nullopt;
  return static_cast<std::size_t>(place - groups.begin());
}
}  // namespace

Scheduler::Scheduler(SchedulerLimits const& limits, std::vector<KvCacheSpec> const& groups,
                     std::vector<std::size_t> const& blocks)
    : limits_(limits),
      block_tokens_(common_block_tokens(groups)),
      cross_group_(cross_group(groups)),
      batch_({.max_tokens = limits.max_num_batched_tokens,
              .max_sequences = limits.max_num_seqs,
              .block_tokens = block_tokens_,
              .max_blocks_per_sequence = blocks_for(limits.max_model_len),
              .most_held = most_held(groups, limits),
              .cross_group = cross_group_}),
      encoder_batch_({.max_tokens = cross_group_ ? std::max(limits.max_model_len, limits.max_num_batched_tokens) : 0,
                      .max_sequences = cross_group_ ? limits.max_num_seqs : 0,
                      .block_tokens = block_tokens_}) {
  EM_CHECK(blocks.size() == groups.size(), groups.size() << " KV groups, blocks for " << blocks.size());
  EM_CHECK(limits.max_num_batched_tokens >= limits.max_num_seqs,
           "tokens a step " << limits.max_num_batched_tokens << ", sequences " << limits.max_num_seqs);
  for (std::size_t g = 0; g < groups.size(); ++g)
    groups_.push_back(
        {groups[g], KvBlockPool(blocks[g], [this, g](std::uint32_t block) { prefix_cache_->drop(g, block); })});
  if (limits.prefix_cache) {
    EM_CHECK(!cross_group_ && limits.num_expert_counts == 0, "keys and values depend on more than the tokens before");
    prefix_cache_.emplace(block_tokens_, blocks);
    found_.reserve(blocks_for(limits.max_model_len));
    known_blocks_.resize(groups.size());
  }
  running_.reserve(limits.max_num_seqs);
  preempted_.reserve(limits.max_num_seqs);  // they ran together
}

std::size_t Scheduler::blocks_for(std::size_t tokens) const {
  return (tokens + block_tokens_ - 1) / block_tokens_;
}

// That a sequence of up to `tokens` tokens holds at one time, whatever the steps are like.
std::size_t Scheduler::most_blocks(Group const& group, std::size_t tokens) const {
  return group.spec.most_blocks(tokens, limits_.max_num_batched_tokens);
}

bool Scheduler::fits_ever(std::size_t max_length) const {
  return max_length <= limits_.max_model_len && std::ranges::all_of(groups_, [&](Group const& group) {
           return most_blocks(group, max_length) <= group.pool.num_blocks();
         });
}

void Scheduler::submit(Sequence& sequence) {
  EM_CHECK(fits_ever(sequence.max_length) && !sequence.tokens.empty(),
           "sequence of " << sequence.max_length << " tokens, " << sequence.tokens.size() << " of them known");
  EM_CHECK(sequence.input.empty() != cross_group_.has_value() && sequence.input.size() <= limits_.max_model_len,
           "an input of " << sequence.input.size() << " tokens for the encoder");
  sequence.block_tables.resize(groups_.size());  // here, so that schedule() does not allocate
  for (std::size_t g = 0; g < groups_.size(); ++g)
    sequence.block_tables[g].blocks.reserve(
        blocks_for(g == cross_group_ ? sequence.input.size() : sequence.max_length));
  sequence.expert_counts.so_far.resize(limits_.num_expert_counts);
  sequence.expert_counts.next.resize(limits_.num_expert_counts);
  waiting_.push_back(&sequence);
}

void Scheduler::remove(Sequence& sequence) {
  batch_.forget(sequence);
  drop_from_encoder(sequence);
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

// That the sequence has, of those which the group holds.
std::size_t Scheduler::tokens_in(std::size_t group, Sequence const& sequence) const {
  return group == cross_group_ ? sequence.input.size() : sequence.tokens.size();
}

// Blocks the sequence has yet to take: for all tokens it has, or as many of them as it may hold at one time.
std::size_t Scheduler::num_missing(std::size_t group, Sequence const& sequence) const {
  BlockTable const& table = sequence.block_tables[group];
  std::size_t const reach = table.num_freed + most_blocks(groups_[group], limits_.max_model_len);
  return std::min(blocks_for(tokens_in(group, sequence)), reach) - table.blocks.size();
}

// Running sequences that will hold more blocks when their answers are longer.
std::size_t Scheduler::num_growing(std::size_t group) const {
  if (group == cross_group_) return 0;
  return static_cast<std::size_t>(std::ranges::count_if(running_, [&](Sequence const* s) {
    return s->block_tables[group].num_held() < groups_[group].spec.most_blocks(s->max_length, 1);
  }));
}

bool Scheduler::has_room(Sequence const& sequence) const {
  for (std::size_t g = 0; g < groups_.size(); ++g)
    if (groups_[g].pool.num_free() < num_missing(g, sequence)) return false;
  return true;
}

// One block more for each that grows: who starts now should not have to give way at once.
bool Scheduler::may_start(Sequence const& sequence) const {
  for (std::size_t g = 0; g < groups_.size(); ++g)
    if (groups_[g].pool.num_free() < num_missing(g, sequence) + num_growing(g)) return false;
  return true;
}

void Scheduler::grow(Sequence& sequence) {
  for (std::size_t g = 0; g < groups_.size(); ++g)
    for (std::size_t missing = num_missing(g, sequence); missing > 0; --missing)
      sequence.block_tables[g].blocks.push_back(groups_[g].pool.take());
}

// Fills found_ with the blocks of the longest beginning, and returns how many there are.
std::size_t Scheduler::find_prefix(Sequence const& sequence) {
  found_.clear();
  auto prefix = PrefixCache::empty(sequence.prefix_kind);
  auto const tokens = std::span(sequence.tokens);
  for (std::size_t const end = (tokens.size() - 1) / block_tokens_; found_.size() < end;) {
    auto const entry = prefix_cache_->find(prefix, tokens.subspan(found_.size() * block_tokens_, block_tokens_));
    bool usable = entry.has_value();
    for (std::size_t g = 0; g < groups_.size(); ++g)
      usable = usable && (groups_[g].spec.has_span() || entry->blocks[g] != kNoKvBlock);
    if (!usable) break;
    found_.push_back(*entry);
    prefix = entry->prefix;
  }
  // Shorter, until in every group with a span all is there that its next token attends to. What is missing there is
  // missing for every other that goes beyond it.
  std::size_t count = found_.size();
  for (bool cut = true; cut;) {
    cut = false;
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (std::size_t b = count; b > groups_[g].spec.first_needed(count * block_tokens_) / block_tokens_; --b)
        if (found_[b - 1].blocks[g] == kNoKvBlock) {
          count = b - 1;
          cut = true;
          break;
        }
  }
  return count;
}

void Scheduler::attach_prefix(Sequence& sequence) {
  std::size_t const count = find_prefix(sequence);
  if (count == 0) return;
  sequence.num_computed = count * block_tokens_;
  sequence.prefix = found_[count - 1].prefix;
  sequence.num_known = count;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& [blocks, num_freed] = sequence.block_tables[g];
    num_freed = groups_[g].spec.first_needed(sequence.num_computed) / block_tokens_;
    blocks.assign(num_freed, kNoKvBlock);
    for (std::size_t b = num_freed; b < count; ++b) {
      groups_[g].pool.share(found_[b].blocks[g]);
      blocks.push_back(found_[b].blocks[g]);
    }
  }
}

// The whole blocks that are computed now.
void Scheduler::remember(Sequence& sequence) {
  if (sequence.num_known == 0) sequence.prefix = PrefixCache::empty(sequence.prefix_kind);
  for (; (sequence.num_known + 1) * block_tokens_ <= sequence.num_computed; ++sequence.num_known) {
    for (std::size_t g = 0; g < groups_.size(); ++g)
      known_blocks_[g] = sequence.block_tables[g].blocks[sequence.num_known];
    auto const entry = prefix_cache_->add(
        sequence.prefix, std::span(sequence.tokens).subspan(sequence.num_known * block_tokens_, block_tokens_),
        known_blocks_);
    for (std::size_t g = 0; g < groups_.size(); ++g)
      if (entry.blocks[g] == known_blocks_[g] && entry.blocks[g] != kNoKvBlock) groups_[g].pool.keep(entry.blocks[g]);
    sequence.prefix = entry.prefix;
  }
}

void Scheduler::free_out_of_reach(Sequence& sequence) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    BlockTable& table = sequence.block_tables[g];
    for (std::size_t const end = groups_[g].spec.first_needed(sequence.num_computed) / block_tokens_;
         table.num_freed < end; ++table.num_freed)
      groups_[g].pool.release(std::exchange(table.blocks[table.num_freed], kNoKvBlock));
  }
}

// The last first: of kept ones the longest beginnings are given up first.
void Scheduler::free_blocks(Sequence& sequence) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& [blocks, num_freed] = sequence.block_tables[g];
    for (std::size_t b = blocks.size(); b > num_freed; --b) groups_[g].pool.release(blocks[b - 1]);
    blocks.clear();
    num_freed = 0;
  }
  sequence.num_known = 0;
}

void Scheduler::preempt_last() {
  Sequence& last = *running_.back();
  running_.pop_back();
  free_blocks(last);
  last.num_computed = 0;
  last.encoded = false;
  drop_from_encoder(last);
  preempted_.push_back(&last);
  ++num_preemptions_;
}

// Blocks for all tokens of running_[index]; false if it had to give way itself.
bool Scheduler::make_room(std::size_t index) {
  Sequence& sequence = *running_[index];
  while (!has_room(sequence)) {
    preempt_last();
    if (index == running_.size()) return false;
  }
  grow(sequence);
  return true;
}

Sequence* Scheduler::next_to_admit() const {
  if (!preempted_.empty()) return preempted_.back();
  return waiting_.empty() ? nullptr : waiting_.front();
}

// False if there is none, or no room for it.
bool Scheduler::admit_next() {
  Sequence* const next = next_to_admit();
  if (!next) return false;
  bool const reuses = prefix_cache_ && next->reuse_prefix;
  if (reuses) attach_prefix(*next);
  if (!may_start(*next)) {
    free_blocks(*next);
    next->num_computed = 0;
    return false;
  }
  if (reuses && !next->num_cached) {
    prefix_counts_.asked += next->tokens.size();
    prefix_counts_.found += next->num_computed;
  }
  if (!next->num_cached) next->num_cached = next->num_computed;
  if (!preempted_.empty())
    preempted_.pop_back();
  else
    waiting_.pop_front();
  running_.push_back(next);
  grow(*next);
  return true;
}

StepBatch const& Scheduler::schedule(std::size_t max_prefill_tokens) {
  batch_.clear();
  // First all who decode: a victim of theirs arrived later, so it is not yet in the batch.
  for (std::size_t i = 0; i < running_.size(); ++i)
    if (running_[i]->num_pending() == 1 && !running_[i]->awaits_encoder() && make_room(i)) batch_.add(*running_[i], 1);

  std::size_t budget = limits_.max_num_batched_tokens - batch_.num_tokens();
  if (batch_.num_tokens() > 0) budget = std::min(budget, max_prefill_tokens);
  auto const prefill = [&](Sequence& sequence) {
    std::size_t const count = std::min(sequence.num_pending(), budget);
    if (count == 0) return;
    batch_.add(sequence, count);
    budget -= count;
  };
  for (Sequence* s : running_)
    if (s->num_pending() > 1 && !s->awaits_encoder()) prefill(*s);
  std::size_t to_encode = 0;  // tokens of inputs that wait for the encoder
  for (Sequence const* s : running_) to_encode += s->awaits_encoder() ? s->input.size() : 0;
  while (to_encode < budget && running_.size() < limits_.max_num_seqs) {
    if (!admit_next()) break;
    Sequence& next = *running_.back();
    if (next.awaits_encoder())
      to_encode += next.input.size();
    else
      prefill(next);
  }
  if (cross_group_) fill_encoder_batch(budget);
  batch_.seal();
  return batch_;
}

// Whole inputs while they fit, and the first one in any case; it goes on at least a little in every step.
void Scheduler::fill_encoder_batch(std::size_t budget) {
  encoder_batch_.set_budget(std::max<std::size_t>(budget, 1));
  if (!encoder_batch_.empty()) return;  // still under way
  encoder_batch_.clear();
  for (Sequence* s : running_) {
    if (!s->awaits_encoder()) continue;
    if (!encoder_batch_.empty() && encoder_batch_.num_tokens() + s->input.size() > budget) break;
    encoder_batch_.add(*s, s->block_tables[*cross_group_]);
  }
  encoder_batch_.seal();
}

// What was done for the others in the batch is lost with it.
void Scheduler::drop_from_encoder(Sequence& sequence) {
  if (encoder_batch_.contains(sequence)) encoder_batch_.clear();
}

void Scheduler::complete_encoding() {
  for (Sequence* s : encoder_batch_.sequences()) s->encoded = true;
  encoder_batch_.clear();
}

void Scheduler::complete_step() {
  for (std::size_t i = 0; i < batch_.sequences().size(); ++i) {
    Sequence* const sequence = batch_.sequences()[i];
    if (!sequence) continue;
    sequence->num_computed += batch_.offsets()[i + 1] - batch_.offsets()[i];
    if (prefix_cache_) remember(*sequence);
    free_out_of_reach(*sequence);
    grow(*sequence);  // while its prompt goes on: at most as many as it has just given back
  }
}

double Scheduler::kv_usage() const {
  double usage = 0;
  for (auto const& [spec, pool] : groups_)
    if (pool.num_blocks() > 0)
      usage = std::max(usage, static_cast<double>(pool.num_used()) / static_cast<double>(pool.num_blocks()));
  return usage;
}

void Scheduler::check_integrity() const {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto const& [spec, pool] = groups_[g];
    pool.check_integrity();
    std::size_t held = 0;
    for (Sequence const* s : running_) {
      auto const& [blocks, num_freed] = s->block_tables[g];
      std::size_t const out_of_reach = spec.first_needed(s->num_computed) / block_tokens_;
      std::size_t const computed = g == cross_group_ ? s->input.size() : s->num_computed;
      EM_CHECK(num_freed == out_of_reach && blocks_for(computed) <= blocks.size() &&
                   static_cast<std::size_t>(std::ranges::count(blocks, kNoKvBlock)) == num_freed,
               "group " << g << ": sequence " << s->id << " has freed " << num_freed << " of " << blocks.size()
                        << " blocks, " << out_of_reach << " are out of reach of its token " << s->num_computed);
      held += blocks.size() - num_freed;
    }
    EM_CHECK(held == pool.num_references(),
             "running sequences hold " << held << " blocks, " << pool.num_references() << " are counted");
  }
}

}  // namespace expertmesh
