#include "common/config/weight_slice.h"

namespace expertmesh {
namespace {

// Element i of `count` is stored element first + i * step of `stored` (0: count), in matrix `index` of `stack`.
std::string problem_of_part(std::size_t stack, std::size_t index, std::size_t stored, std::size_t first,
                            std::size_t step, std::size_t count) {
  if (stack == 0 ? index != 0 : index >= stack)
    return "number " + std::to_string(index) + " of a stack of " + std::to_string(stack);
  if (count == 0) return "is empty";
  if (step == 0) return "a step of 0";
  std::size_t const last = first + (count - 1) * step;
  std::size_t const end = stored == 0 ? count : stored;
  if (last >= end) return "reaches number " + std::to_string(last) + " of " + std::to_string(end) + " stored";
  return {};
}

std::string problem_of(StoredIntegers const& i) {
  bool const bytes = i.layout == IntegerLayout::bytes;
  if (i.bits != 8 && (i.bits != 4 || bytes)) return std::to_string(i.bits) + " bits in this layout";
  if (i.layout == IntegerLayout::awq && i.bits != 4) return "awq of " + std::to_string(i.bits) + " bits";
  if (i.layout == IntegerLayout::awq && i.has_group_index) return "awq has no group index";
  if (i.one_scale && (!bytes || i.group_size != 0 || i.has_group_index)) return "one scale, and groups";
  if (i.zero_points == ZeroPoints::stored_minus_one && i.layout != IntegerLayout::gptq)
    return "zero points minus one are of gptq";
  return {};
}

std::string in_blocks(WeightSlice const& w) {
  if (w.block_rows == 0) return " with one scale";
  if (w.block_columns == 0) return w.block_rows == 1 ? " with a scale a row" : " in blocks of rows";
  return " in blocks of " + std::to_string(w.block_rows) + " x " + std::to_string(w.block_columns);
}

char const* name_of(IntegerLayout layout) {
  switch (layout) {
    case IntegerLayout::gptq:
      return "gptq";
    case IntegerLayout::awq:
      return "awq";
    case IntegerLayout::packed:
      return "packed";
    case IntegerLayout::bytes:
      return "bytes";
  }
  return "";
}

}  // namespace

std::string form_of(WeightSlice const& w) {
  switch (w.storage) {
    case WeightStorage::numbers:
      return {};
    case WeightStorage::fp8_blocks:
    case WeightStorage::fp8_scaled:
      return "fp8" + in_blocks(w);
    case WeightStorage::mxfp4:
      return "mxfp4";
    case WeightStorage::integers:
      break;
  }
  StoredIntegers const& i = w.integers;
  std::string const groups = i.one_scale         ? " with one scale"
                             : i.group_size == 0 ? " with a scale a row"
                                                 : " in groups of " + std::to_string(i.group_size);
  return "int" + std::to_string(i.bits) + groups + " (" + name_of(i.layout) +
         (i.zero_points == ZeroPoints::middle ? "" : ", zero points") + (i.has_group_index ? ", group index" : "") +
         ")";
}

std::string problem_of(WeightSlice const& w, std::size_t n, std::size_t k) {
  if (k == 0) return "is empty";
  if (w.storage == WeightStorage::integers && (w.transposed || w.stack != 0))
    return "integers are never transposed or stacked";
  if (w.storage == WeightStorage::integers)
    if (std::string problem = problem_of(w.integers); !problem.empty()) return problem;
  if (w.storage == WeightStorage::mxfp4 && w.transposed) return "mxfp4 is never transposed";
  if (w.storage == WeightStorage::mxfp4 && k % kMxfp4Group != 0)
    return "mxfp4 rows of " + std::to_string(k) + ", no multiple of " + std::to_string(kMxfp4Group);
  if (w.storage == WeightStorage::fp8_blocks && (w.block_rows == 0 || w.block_columns == 0)) return "blocks of 0";
  if (w.storage == WeightStorage::fp8_scaled && w.block_rows == 0 && w.block_columns != 0) return "blocks of 0 rows";
  return problem_of_part(w.stack, w.index, w.stored_rows, w.first_row, w.row_step, n);
}

std::string problem_of(VectorSlice const& v, std::size_t n) {
  return problem_of_part(v.stack, v.index, v.stored_length, v.first, v.step, n);
}

}  // namespace expertmesh
