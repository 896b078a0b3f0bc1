// Products of int4 weights as two of int8, where bytes are multiplied without a loss, of whichever ISA was included
// before: it has load_int4(), which makes two of its Int8Weights. See vec_scalar.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr int kInt4StepsUnrolled = 4;  // of a group
using Int4Sums = Ints;
struct Int4Row {
  Int8Row low, high;
};

// start: what a group's sums begin with; it is in the total, wherever an ISA adds it.
inline Int4Sums first_int4_sums(std::int32_t start) {
  return broadcast(start);
}
inline Int4Row broadcast_int4(std::int8_t const* x) {
  return {broadcast_int8(x), broadcast_int8(x + 4)};
}
// acc[n] += w[n][0] x[0] + … + w[n][7] x[7], the weights unsigned
inline Int4Sums dot_int4(Int4Sums const& acc, Int4Weights const& w, Int4Row const& row) {
  return dot_int8(dot_int8(acc, w.low, row.low), w.high, row.high);
}
inline Ints const& total(Int4Sums const& sums, std::int32_t /*start*/) {
  return sums;
}

}  // namespace
}  // namespace expertmesh
