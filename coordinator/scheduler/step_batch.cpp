#include "coordinator/scheduler/step_batch.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

StepBatch::StepBatch(Limits const& limits)
    : block_tokens_(limits.block_tokens),
      max_blocks_per_sequence_(limits.max_blocks_per_sequence),
      cross_group_(limits.cross_group),
      tables_(limits.most_held.size()),
      places_(limits.most_held.size()) {
  ids_.reserve(limits.max_tokens);
  positions_.reserve(limits.max_tokens);
  prompt_lengths_.reserve(limits.max_tokens);
  sequence_of_.reserve(limits.max_tokens);
  if (cross_group_) input_ends_.reserve(limits.max_tokens);
  offsets_.reserve(limits.max_sequences + 1);
  sequences_.reserve(limits.max_sequences);
  logit_rows_.reserve(limits.max_tokens);
  for (std::size_t g = 0; g < tables_.size(); ++g) {
    tables_[g].blocks.reserve(max_blocks_per_sequence_ + limits.max_sequences * (1 + limits.most_held[g]));
    tables_[g].blocks.assign(max_blocks_per_sequence_, kNoKvBlock);
    tables_[g].offsets.reserve(limits.max_sequences);
  }
  clear();
}

void StepBatch::clear() {
  ids_.clear();
  positions_.clear();
  prompt_lengths_.clear();
  sequence_of_.clear();
  input_ends_.clear();
  offsets_.assign(1, 0);
  sequences_.clear();
  logit_rows_.clear();
  num_decodes_ = 0;
  for (auto& table : tables_) {
    table.blocks.resize(max_blocks_per_sequence_);
    table.offsets.clear();
  }
}

void StepBatch::add(Sequence& sequence, std::size_t count) {
  EM_CHECK(ids_.size() + count <= ids_.capacity() && sequences_.size() < sequences_.capacity(),
           "a batch of " << ids_.size() << " tokens, " << sequences_.size() << " sequences takes no " << count
                         << " more of one");
  auto const index = static_cast<std::uint32_t>(sequences_.size());
  if (sequence.num_pending() == 1) ++num_decodes_;
  for (std::size_t i = 0; i < count; ++i) {
    auto const position = static_cast<std::uint32_t>(sequence.num_computed + i);
    bool const last = position + 1 == sequence.tokens.size();
    if (last || (sequence.prompt_logits && position + 1 < sequence.prompt_length))
      logit_rows_.push_back({static_cast<std::uint32_t>(ids_.size()), index, position, last});
    ids_.push_back(sequence.tokens[position]);
    positions_.push_back(position);
    prompt_lengths_.push_back(static_cast<std::uint32_t>(sequence.prompt_length));
    sequence_of_.push_back(index);
    if (cross_group_) input_ends_.push_back(static_cast<std::uint32_t>(sequence.input.size() - 1));
  }
  offsets_.push_back(static_cast<std::uint32_t>(ids_.size()));
  sequences_.push_back(&sequence);
  std::size_t const computed = (sequence.num_computed + count + block_tokens_ - 1) / block_tokens_;
  for (std::size_t g = 0; g < tables_.size(); ++g) {
    auto const& [blocks, num_freed] = sequence.block_tables[g];
    std::size_t const end = g == cross_group_ ? blocks.size() : computed;
    auto& [copied, offsets] = tables_[g];
    EM_CHECK(num_freed < end && end <= blocks.size() && copied.size() + 1 + end - num_freed <= copied.capacity(),
             "blocks [" << num_freed << "," << blocks.size() << ") of sequence " << sequence.id << " in group " << g
                        << " for " << end << " of them");
    copied.push_back(kNoKvBlock);
    offsets.push_back(static_cast<std::uint32_t>(copied.size() - num_freed));
    copied.insert(copied.end(), blocks.begin() + static_cast<std::ptrdiff_t>(num_freed),
                  blocks.begin() + static_cast<std::ptrdiff_t>(end));
  }
}

void StepBatch::forget(Sequence& sequence) {
  std::ranges::replace(sequences_, &sequence, static_cast<Sequence*>(nullptr));
}

void StepBatch::seal() {
  for (std::size_t g = 0; g < tables_.size(); ++g)
    places_[g] = {.positions = positions_,
                  .sequences = sequence_of_,
                  .block_tables = tables_[g].blocks,
                  .table_offsets = tables_[g].offsets,
                  .last = g == cross_group_ ? input_ends_ : std::span<std::uint32_t const>{}};
}

}  // namespace expertmesh
