// The experts: rows grouped by expert go through gate, up, activation and down; each row's bits depend on that row and
// its expert alone.
#pragma once
#include <cstddef>
#include <span>

#include "common/config/expert_spec.h"
#include "common/kernels/exec.h"
#include "common/kernels/packed_matrix.h"

namespace expertmesh {

struct FfnWeights {
  PackedMatrix gate_up;  // [2F,H]: rows 0…F-1 gate, F…2F-1 up
  PackedMatrix down;     // [H,F]
  Activation activation = Activation::silu;
};

struct GroupedRows {
  std::span<FfnWeights const* const> groups;  // [N] the experts hit, any order
  std::span<std::size_t const> offsets;       // [N+1] rows of group i: [offsets[i], offsets[i+1])
  std::span<std::byte const* const> in;       // [R] each a row of H elements of `wire`; may repeat
  std::span<std::byte* const> out;            // [R] each a row of H elements of `wire`, all distinct
  DType wire = DType::f32;                    // f32 or bf16; outputs are rounded to it (to nearest even) here
};

// out[r] = down(silu(gate(in[r])) * up(in[r])). R may be 0 and at most exec.limits().max_rows.
void grouped_ffn(Exec const& exec, GroupedRows const& rows);

}  // namespace expertmesh
