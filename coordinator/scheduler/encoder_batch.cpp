#include "coordinator/scheduler/encoder_batch.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

EncoderBatch::EncoderBatch(Limits const& limits) : block_tokens_(limits.block_tokens) {
  ids_.reserve(limits.max_tokens);
  positions_.reserve(limits.max_tokens);
  lengths_.reserve(limits.max_tokens);
  last_.reserve(limits.max_tokens);
  sequence_of_.reserve(limits.max_tokens);
  sequences_.reserve(limits.max_sequences);
  blocks_.reserve(limits.max_tokens / std::max<std::size_t>(limits.block_tokens, 1) + limits.max_sequences);
  offsets_.reserve(limits.max_sequences);
}

void EncoderBatch::clear() {
  ++id_;
  ids_.clear();
  positions_.clear();
  lengths_.clear();
  last_.clear();
  sequence_of_.clear();
  sequences_.clear();
  blocks_.clear();
  offsets_.clear();
}

void EncoderBatch::add(Sequence& sequence, BlockTable const& table) {
  std::size_t const count = sequence.input.size();
  EM_CHECK(ids_.size() + count <= ids_.capacity() && sequences_.size() < sequences_.capacity() &&
               table.blocks.size() * block_tokens_ >= count,
           "an encoder's batch of " << ids_.size() << " tokens takes no " << count << " more in " << table.blocks.size()
                                    << " blocks");
  auto const length = static_cast<std::uint32_t>(count);
  ids_.insert(ids_.end(), sequence.input.begin(), sequence.input.end());
  for (std::uint32_t position = 0; position < length; ++position) positions_.push_back(position);
  lengths_.insert(lengths_.end(), count, length);
  last_.insert(last_.end(), count, length - 1);
  sequence_of_.insert(sequence_of_.end(), count, static_cast<std::uint32_t>(sequences_.size()));
  offsets_.push_back(static_cast<std::uint32_t>(blocks_.size()));
  blocks_.insert(blocks_.end(), table.blocks.begin(), table.blocks.end());
  sequences_.push_back(&sequence);
}

void EncoderBatch::seal() {
  places_ = {.positions = positions_,
             .sequences = sequence_of_,
             .block_tables = blocks_,
             .table_offsets = offsets_,
             .last = last_};
}

bool EncoderBatch::contains(Sequence const& sequence) const {
  return std::ranges::find(sequences_, &sequence) != sequences_.end();
}

}  // namespace expertmesh
