#include "common/experts/row_groups.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

RowGroups::RowGroups(std::size_t max_rows, std::size_t num_experts)
    : next_(num_experts), in_(max_rows), out_(max_rows) {
  std::size_t const max_groups = std::min(max_rows, num_experts);
  hit_.reserve(max_groups);
  groups_.reserve(max_groups);
  offsets_.reserve(max_groups + 1);
  part_groups_.reserve(max_groups);
  part_offsets_.reserve(max_groups + 1);
}

void RowGroups::clear() {
  for (std::size_t const expert : hit_) next_[expert] = 0;
  hit_.clear();
}

void RowGroups::count(std::size_t expert) {
  if (next_[expert]++ == 0) hit_.push_back(expert);
}

void RowGroups::finish_counts() {
  groups_.assign(hit_.size(), nullptr);
  offsets_.assign(1, 0);
  for (std::size_t const expert : hit_) {
    offsets_.push_back(offsets_.back() + next_[expert]);
    next_[expert] = offsets_[offsets_.size() - 2];
  }
  EM_CHECK(offsets_.back() <= in_.size(), offsets_.back() << " rows, room for " << in_.size());
}

void RowGroups::place(std::size_t expert, std::byte const* in, std::byte* out) {
  std::size_t const place = next_[expert]++;
  in_[place] = in;
  out_[place] = out;
}

void RowGroups::run(Exec const& exec, DType wire, std::size_t first_group, std::size_t end_group) {
  std::size_t const total = offsets_[end_group];
  std::size_t group = first_group;
  for (std::size_t begin = offsets_[first_group]; begin < total;) {
    std::size_t const end = std::min(total, begin + exec.limits().max_rows);
    part_groups_.clear();
    part_offsets_.assign(1, 0);
    for (;; ++group) {
      part_groups_.push_back(groups_[group]);
      part_offsets_.push_back(std::min(end, offsets_[group + 1]) - begin);
      if (offsets_[group + 1] >= end) break;  // a group that goes on past the cut is looked at again
    }
    if (offsets_[group + 1] == end) ++group;
    grouped_ffn(exec, {.groups = part_groups_,
                       .offsets = part_offsets_,
                       .in = {in_.data() + begin, end - begin},
                       .out = {out_.data() + begin, end - begin},
                       .wire = wire});
    begin = end;
  }
}

}  // namespace expertmesh
