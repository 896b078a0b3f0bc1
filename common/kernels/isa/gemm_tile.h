// What the register tiles of all GEMMs share over Vec, of whichever ISA was included before.
#pragma once
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

// Before a loop over the sums of a register tile: only when it is unrolled do they stay in registers.
#if defined(__clang__)
#define EM_UNROLL _Pragma("unroll")
#define EM_UNROLL_INT4_STEPS _Pragma("unroll(kInt4StepsUnrolled)")
#else
#define EM_UNROLL _Pragma("GCC unroll 32")
#define EM_UNROLL_INT4_STEPS _Pragma("GCC unroll kInt4StepsUnrolled")
#endif

namespace expertmesh {
namespace {

// Weights that are read next, fetched line by line while others are multiplied: so the memory is busy however many rows
// the present ones meet.
constexpr std::size_t kStepsATick = 8;  // of a loop over k

struct Ahead {
  std::byte const* line = nullptr;
  std::byte const* end = nullptr;
  std::size_t lines_a_tick = 0;

  void tick() {
    std::byte const* const until = line + lines_a_tick * kLineBytes < end ? line + lines_a_tick * kLineBytes : end;
    for (; line < until; line += kLineBytes) __builtin_prefetch(line, 0, 2);  // not into L1: a tile is larger
  }
};

// Sums of a tile from one group of K to the next: in the nearest cache, since registers hold the groups' own sums.
template <std::size_t MR, std::size_t NP>
class TileSums {
 public:
  TileSums() {
    EM_UNROLL
    for (std::size_t s = 0; s < MR * NP; ++s) expertmesh::store(sums_[s], zero());
  }
  // += a * b
  void add(std::size_t i, std::size_t j, Vec const& a, Vec const& b) {
    expertmesh::store(sums_[i * NP + j], fma(a, b, load(sums_[i * NP + j])));
  }
  void store(GemmPart const& g, std::size_t row, std::size_t panel) const {
    for (std::size_t i = 0; i < MR; ++i)
      for (std::size_t j = 0; j < NP; ++j) {
        std::size_t const column = (panel + j) * kLanes;
        store_some(g.y[row + i] + column, load(sums_[i * NP + j]), g.n - column);
      }
  }

 private:
  alignas(64) float sums_[MR * NP][kLanes];
};

}  // namespace
}  // namespace expertmesh
