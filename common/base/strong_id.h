// Integers that must not be swapped: StrongId<struct WorkerTag> and StrongId<struct LayerTag> do not convert.
#pragma once
#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace expertmesh {

template <class Tag, class Rep = std::uint32_t>
class StrongId {
 public:
  using rep = Rep;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}
  [[nodiscard]] constexpr Rep value() const { return value_; }
  // clang-tidy 14 takes the 0 of a rewritten comparison for a pointer.
  friend constexpr auto operator<=>(StrongId, StrongId) = default;  // NOLINT(modernize-use-nullptr)
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }

 private:
  Rep value_ = 0;
};

using TokenId = std::int32_t;                               // as tokenizers and checkpoints have it
using WorkerId = StrongId<struct WorkerIdTag>;              // 1..N; stays with the place in the cluster
using Incarnation = StrongId<struct IncarnationTag>;        // counts the lives of a worker, from 1
using PlacementEpoch = StrongId<struct PlacementEpochTag>;  // counts the placements of a cluster, from 1
using SequenceId = StrongId<struct SequenceIdTag, std::uint64_t>;

}  // namespace expertmesh

template <class Tag, class Rep>
struct std::hash<expertmesh::StrongId<Tag, Rep>> {
  std::size_t operator()(expertmesh::StrongId<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value()); }
};
