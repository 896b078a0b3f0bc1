#include "coordinator/model/step_inputs.h"

namespace expertmesh {
namespace {

// Those whose sizes are the numbers of tokens and sequences. The block tables come after all of them, as one array.
void each_array(TokenPlaces& p, auto use) {
  use(p.positions, p.on_device.positions);
  use(p.sequences, p.on_device.sequences);
  use(p.table_offsets, p.on_device.table_offsets);
  use(p.last, p.on_device.last);
}

}  // namespace

StepInputs::StepInputs(DeviceMemory& device, std::size_t most_numbers)
    : device_(device), memory_(most_numbers, most_numbers > 0 ? &device : nullptr) {
  packed_.reserve(most_numbers);
}

void StepInputs::put(std::span<TokenId const> ids, std::span<TokenPlaces const> places, std::size_t most_positions) {
  static_assert(sizeof(TokenId) == sizeof(std::uint32_t));
  packed_.clear();
  places_.assign(places.begin(), places.end());
  for (TokenId const id : ids) packed_.push_back(static_cast<std::uint32_t>(id));
  std::uint32_t tables_before = 0;
  for (TokenPlaces& p : places_) {
    each_array(p, [&](auto const& numbers, auto&) { packed_.insert(packed_.end(), numbers.begin(), numbers.end()); });
    auto const end_of_offsets = packed_.end() - static_cast<std::ptrdiff_t>(p.last.size());
    for (auto it = end_of_offsets - static_cast<std::ptrdiff_t>(p.table_offsets.size()); it != end_of_offsets; ++it)
      *it += tables_before;
    tables_before += static_cast<std::uint32_t>(p.block_tables.size());
  }
  std::size_t const tables_at = packed_.size();
  for (TokenPlaces const& p : places_) packed_.insert(packed_.end(), p.block_tables.begin(), p.block_tables.end());

  if (packed_.size() > memory_.size()) memory_ = AlignedBuffer<std::uint32_t>(kGrowth * packed_.size(), &device_);
  if (!packed_.empty()) device_.upload(memory_.data(), packed_.data(), packed_.size() * sizeof(std::uint32_t));
  ids_ = {reinterpret_cast<TokenId const*>(memory_.data()), ids.size()};
  std::size_t next = ids.size();
  for (TokenPlaces& p : places_) {
    each_array(p, [&](auto const& numbers, std::uint32_t const*& there) {
      there = memory_.data() + next;
      next += numbers.size();
    });
    p.on_device.block_tables = memory_.data() + tables_at;
    p.on_device.most_positions = most_positions;
  }
}

std::size_t StepInputs::most_bytes(std::size_t groups, std::size_t tokens, std::size_t sequences, std::size_t length) {
  std::size_t const of_tokens = 3 * tokens;  // positions, sequences, last
  std::size_t const of_sequences = sequences * (length / kKvBlockTokens + 2);
  // While a buffer takes the place of one that is too small, both are there.
  return (tokens + groups * (of_tokens + of_sequences)) * (kGrowth + 1) * sizeof(std::uint32_t);
}

std::size_t StepInputs::most_numbers(std::size_t tokens) {
  std::size_t const sequences = tokens;                                 // at most
  return 4 * tokens + sequences + tokens / kKvBlockTokens + sequences;  // ids and places; offsets; blocks
}

}  // namespace expertmesh
