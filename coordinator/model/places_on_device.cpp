#include "coordinator/model/places_on_device.h"

namespace expertmesh {

std::span<TokenPlaces const> PlacesOnDevice::take(std::span<TokenPlaces const> places) {
  packed_.clear();
  auto const each_array = [](TokenPlaces& p, auto use) {
    use(p.positions, p.on_device.positions);
    use(p.sequences, p.on_device.sequences);
    use(p.block_tables, p.on_device.block_tables);
    use(p.table_offsets, p.on_device.table_offsets);
    use(p.last, p.on_device.last);
  };
  places_.assign(places.begin(), places.end());
  for (TokenPlaces& p : places_)
    each_array(p, [&](auto const& numbers, auto&) { packed_.insert(packed_.end(), numbers.begin(), numbers.end()); });
  if (packed_.size() > memory_.size()) memory_ = AlignedBuffer<std::uint32_t>(kGrowth * packed_.size(), &device_);
  if (!packed_.empty()) device_.upload(memory_.data(), packed_.data(), packed_.size() * sizeof(std::uint32_t));
  std::size_t next = 0;
  for (TokenPlaces& p : places_)
    each_array(p, [&](auto const& numbers, std::uint32_t const*& there) {
      there = memory_.data() + next;
      next += numbers.size();
    });
  return places_;
}

std::size_t PlacesOnDevice::most_bytes(std::size_t groups, std::size_t tokens, std::size_t sequences,
                                       std::size_t length) {
  std::size_t const of_tokens = 3 * tokens;  // positions, sequences, last
  std::size_t const of_sequences = sequences * (length / kKvBlockTokens + 2);
  // While a buffer takes the place of one that is too small, both are there.
  return groups * (of_tokens + of_sequences) * (kGrowth + 1) * sizeof(std::uint32_t);
}

}  // namespace expertmesh
