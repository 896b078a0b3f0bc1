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

}  // namespace

std::string problem_of(WeightSlice const& w, std::size_t n, std::size_t k) {
  if (k == 0) return "is empty";
  if (w.storage == WeightStorage::mxfp4 && w.transposed) return "mxfp4 is never transposed";
  if (w.storage == WeightStorage::mxfp4 && k % kMxfp4Group != 0)
    return "mxfp4 rows of " + std::to_string(k) + ", no multiple of " + std::to_string(kMxfp4Group);
  if (w.storage == WeightStorage::fp8_blocks && (w.block_rows == 0 || w.block_columns == 0)) return "blocks of 0";
  return problem_of_part(w.stack, w.index, w.stored_rows, w.first_row, w.row_step, n);
}

std::string problem_of(VectorSlice const& v, std::size_t n) {
  return problem_of_part(v.stack, v.index, v.stored_length, v.first, v.step, n);
}

}  // namespace expertmesh
