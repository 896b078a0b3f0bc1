// The experts: rows grouped by expert go through gate, up, activation and down; each row's bits depend on that row and
// its expert alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/config/activation.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/kernels/linear.h"

namespace expertmesh {

struct FfnWeights {
  PackedLinear gate_up;  // [2F,H]: rows 0…F-1 gate, F…2F-1 up; without a gate [F,H]: up
  PackedLinear down;     // [H,F]
  ActivationSpec activation{};

  [[nodiscard]] bool gated() const { return gate_up.w.n() == 2 * down.w.k(); }
  [[nodiscard]] std::size_t size_bytes() const { return gate_up.size_bytes() + down.size_bytes(); }
};

// Where they lie, in the memory of their device.
DeviceExpert on_device(FfnWeights const& ffn);

// A layer whose experts, all alike, are those of the table; any: one of them. wire: of its rows.
DeviceExperts layer_on_device(FfnWeights const& any, std::span<DeviceExpert const> table, DType wire);

struct GroupedRows {
  std::span<FfnWeights const* const> groups;  // [N] the experts hit, any order; they may be of several layers
  std::span<std::size_t const> offsets;       // [N+1] rows of group i: [offsets[i], offsets[i+1])
  std::span<std::byte const* const> in;       // [R] each a row of H elements of `wire`; may repeat
  std::span<std::byte* const> out;            // [R] each a row of H elements of `wire`, all distinct
  DType wire = DType::f32;                    // f32 or bf16; outputs are rounded to it (to nearest even) here
};

// out[r] = down(f(gate(in[r])) * up(in[r])), without a gate down(f(up(in[r]))); biases are added in fp32 to the
// finished sums. R may be 0 and at most exec.limits().max_rows. The rows are on the host.
void grouped_ffn(Exec const& exec, GroupedRows const& rows);

// The same where the rows are in the device's memory: row rows[i] of `in` goes through expert experts[i] of the layer
// to row i of `out`; rows of the layer's H and wire dtype, one behind the other. rows, experts: [R] on the host, which
// waits for nothing; any R.
void experts_on_device(Exec const& exec, DeviceExperts const& layer, std::span<std::uint32_t const> rows,
                       std::span<std::uint32_t const> experts, std::byte const* in, std::byte* out);

// The same where the host knows who goes where no more than the device tells it: slot s = t*K + k of row t of `in`
// goes through expert experts[s] of the layer to row s of `out`. experts: [T*K] in the device's memory. Slots whose
// expert is not in the layer's table, or null there, are left alone.
void slots_on_device(Exec const& exec, DeviceExperts const& layer, std::span<std::uint32_t const> experts,
                     std::size_t experts_per_token, std::byte const* in, std::byte* out);

}  // namespace expertmesh
