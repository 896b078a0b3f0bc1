// What the register tiles of all GEMMs share over Vec, of whichever ISA was included before.
#pragma once
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Weights that are read next, fetched line by line while others are multiplied: so the memory is busy however many rows
// the present ones meet.
struct Ahead {
  std::byte const* line = nullptr;
  std::byte const* end = nullptr;
  std::size_t lines_a_tick = 0;
  std::byte const* then = nullptr;  // goes on here at the end
  std::byte const* then_end = nullptr;

  // Always inlined: a call would send a tile's sums to memory and back.
  [[gnu::always_inline]] void tick() {
    if (line >= end) {
      if (then == then_end) return;
      line = then;
      end = then_end;
      then = then_end;
    }
    for (std::size_t i = 0; i < lines_a_tick; ++i)
      __builtin_prefetch(line + i * kLineBytes, 0, 2);  // not into L1: a tile is larger
    line += lines_a_tick * kLineBytes;
  }
};

// Steps of a loop over k from tick to tick. They are unrolled: where there are more rows than registers for their
// addresses, an address is loaded once for both.
constexpr std::size_t kStepsATick = 2;
template <class Step>
[[gnu::always_inline]] inline void each_step(std::size_t steps, Ahead& ahead, Step step) {
  std::size_t s = 0;
  for (; s + kStepsATick <= steps; s += kStepsATick) {
    ahead.tick();
    EM_UNROLL
    for (std::size_t i = 0; i < kStepsATick; ++i) step(s + i);
  }
  for (; s < steps; ++s) step(s);
}

// Side by side in every step of k. The GEMMs count output columns in vectors: vector v is v % kPanelVectors of panel
// v / kPanelVectors.
constexpr std::size_t kPanelVectors = kPanelColumns / kLanes;

// The largest register tiles of a GEMM, unless it needs more registers for other things.
struct RegisterTiles {
  static constexpr std::size_t kMostSums = kAccumulators;  // vectors
  static constexpr std::size_t kMostRows = kFewRows;
  static constexpr std::size_t kManyRows = kTileRows;  // of a tile where there are more
};

// Sums of a tile from one group of K to the next: in the nearest cache, since registers hold the groups' own sums.
template <std::size_t MR, std::size_t NV>
class TileSums {
 public:
  TileSums() {
    EM_UNROLL
    for (std::size_t s = 0; s < MR * NV; ++s) expertmesh::store(sums_[s], zero());
  }
  // += a * b
  void add(std::size_t i, std::size_t j, Vec const& a, Vec const& b) {
    expertmesh::store(sums_[i * NV + j], fma(a, b, load(sums_[i * NV + j])));
  }
  void store(GemmPart const& g, std::size_t row, std::size_t vector) const {
    for (std::size_t i = 0; i < MR; ++i)
      for (std::size_t j = 0; j < NV; ++j) {
        std::size_t const column = (vector + j) * kLanes;
        store_some(g.y[row + i] + column, load(sums_[i * NV + j]), g.n - column);
      }
  }

 private:
  alignas(64) float sums_[MR * NV][kLanes];
};

}  // namespace
}  // namespace expertmesh
