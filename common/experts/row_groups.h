// Rows grouped by the expert they go to, and the kernel calls that run them. Counts first, then places: two passes over
// the rows, no allocation after construction.
#pragma once
#include <cstddef>
#include <vector>

#include "common/kernels/grouped_ffn.h"

namespace expertmesh {

class RowGroups {
 public:
  // max_rows: of one batch of calls. num_experts: numbers given to count() and place() are below it.
  RowGroups(std::size_t max_rows, std::size_t num_experts);

  // In this order: clear, a count for every row, finish_counts, a place for every row, weights for every group, run.
  void clear();
  void count(std::size_t expert);
  void finish_counts();
  void place(std::size_t expert, std::byte const* in, std::byte* out);  // rows of the wire dtype
  // The experts hit, in the order they were first counted: group i is of expert hit()[i].
  [[nodiscard]] std::vector<std::size_t> const& hit() const { return hit_; }
  void set_weights(std::size_t group, FfnWeights const* weights) { groups_[group] = weights; }
  // Groups [begin, end), in kernel calls of at most exec's rows; a row's bits do not depend on the cut.
  void run(Exec const& exec, DType wire, std::size_t begin, std::size_t end);

 private:
  // Indexed by expert: first the count, then the next free place of its group; zero between batches.
  std::vector<std::size_t> next_;
  std::vector<std::size_t> hit_;
  std::vector<FfnWeights const*> groups_;  // [hit]
  std::vector<std::size_t> offsets_;       // [hit + 1]
  std::vector<std::byte const*> in_;
  std::vector<std::byte*> out_;
  std::vector<FfnWeights const*> part_groups_;  // what run() hands to one kernel call
  std::vector<std::size_t> part_offsets_;
};

}  // namespace expertmesh
