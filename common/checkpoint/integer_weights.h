// Weights stored as integers (StoredIntegers): their tensors, their codes, and the numbers that these stand for.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/weight_slice.h"

namespace expertmesh {

// The tensors behind a weight [n,k] stored as integers, in this order: codes, scales, zero points and group index
// where they are stored, then what is only checked (its `values` say what it has to hold).
std::vector<TensorInfo> integer_tensors_of(WeightSlice const& slice, std::size_t n, std::size_t k);

// Rows of a weight [n,k] in what is stored of it. G groups of K; all of it in plain order, whatever the layout.
class IntegerWeights {
 public:
  // tensors: those of integer_tensors_of() without the ones that are only checked; they have to outlive this. Throws
  // ModelError naming the tensor if an element belongs to a group that is not there.
  IntegerWeights(WeightSlice const& slice, std::size_t n, std::size_t k, std::vector<StoredTensor const*> tensors);

  [[nodiscard]] std::size_t num_groups() const { return num_groups_; }  // G
  // [K] the group of each element; empty: groups of num_columns() lie one behind the other.
  [[nodiscard]] std::vector<std::uint32_t> const& group_of() const { return group_of_; }
  [[nodiscard]] std::size_t num_columns() const { return num_columns_; }
  // Unsigned codes of rows [first, first + count): [count,K]. Signed ones come with half their range added, as do their
  // zero points.
  void codes(std::size_t first, std::size_t count, std::uint8_t* out) const;
  // What a row's groups have: both [G].
  void groups(std::size_t row, float* scales, float* zero_points) const;
  // (code - zero point) x scale of rows [first, first + count): [count,K].
  void dequantise(std::size_t first, std::size_t count, float* out) const;

 private:
  [[nodiscard]] std::size_t row_of(std::size_t n) const { return slice_.first_row + n * slice_.row_step; }
  [[nodiscard]] float zero_point(std::size_t row, std::size_t group) const;
  void codes_along_k(std::size_t first, std::size_t count, std::uint8_t* out) const;
  void codes_across(std::size_t first, std::size_t count, std::uint8_t* out) const;
  void codes_in_rows(std::size_t first, std::size_t count, std::uint8_t* out) const;

  WeightSlice const& slice_;
  std::size_t k_;
  std::size_t stored_rows_;
  std::size_t num_groups_;
  std::size_t num_columns_;
  StoredTensor const* codes_;
  StoredTensor const* scales_;
  StoredTensor const* zero_points_ = nullptr;
  std::vector<std::uint32_t> group_of_;
};

}  // namespace expertmesh
