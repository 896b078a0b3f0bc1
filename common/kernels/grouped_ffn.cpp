#include "common/kernels/grouped_ffn.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/gemm.h"

namespace expertmesh {
namespace {

// One weight of each group, over the rows that scratch.x_rows and y_rows name.
void grouped_gemm(Exec const& exec, GroupedRows const& rows, PackedMatrix FfnWeights::*weight) {
  run_gemms(exec, rows.groups.size(), [&](std::size_t g) {
    std::size_t const row = rows.offsets[g];
    return GemmJob{.w = rows.groups[g]->*weight,
                   .x = exec.scratch().x_rows.data() + row,
                   .y = exec.scratch().y_rows.data() + row,
                   .m = rows.offsets[g + 1] - row};
  });
}

// Row `in` of n elements of `from` as `to` (f32 or bf16), at `out`.
void convert_row(Exec const& exec, DType from, void const* in, std::size_t n, DType to, void* out) {
  if (from == to) {
    std::memcpy(out, in, n * size_of(from));
  } else if (to == DType::bf16) {
    exec.table().round_bf16(static_cast<float const*>(in), n, static_cast<std::uint16_t*>(out));
  } else {
    exec.table().widen_bf16(static_cast<std::uint16_t const*>(in), n, static_cast<float*>(out));
  }
}

}  // namespace

void grouped_ffn(Exec const& exec, GroupedRows const& rows) {
  std::size_t const total = rows.in.size();
  if (total == 0) return;
  FfnWeights const& any = *rows.groups.front();
  std::size_t const hidden = any.down.n();
  std::size_t const intermediate = any.down.k();
  DType const gate_up_input = activation_type(any.gate_up.format());
  DType const down_input = activation_type(any.down.format());
  EM_CHECK(rows.offsets.size() == rows.groups.size() + 1 && rows.offsets.back() == total && rows.out.size() == total,
           "groups " << rows.groups.size() << ", offsets " << rows.offsets.size() << ", rows " << total << ", outputs "
                     << rows.out.size());
  EM_CHECK(total <= exec.limits().max_rows && std::max(hidden, 2 * intermediate) <= exec.limits().max_columns,
           "R " << total << ", H " << hidden << ", F " << intermediate);
  EM_CHECK(any.activation == Activation::silu, "activation " << static_cast<int>(any.activation));
  EM_CHECK(rows.wire == DType::f32 || rows.wire == DType::bf16, "wire " << name_of(rows.wire));
  auto& scratch = exec.scratch();
  auto const each_row = [&](auto body) {
    exec.pool().parallel_for(total, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t r = begin; r < end; ++r) body(r);
    });
  };

  // gate and up: [R,H] -> hidden [R,2F]. Rows that have the weight's activation type already are read in place.
  bool const in_place = rows.wire == gate_up_input;
  if (!in_place)
    each_row(
        [&](std::size_t r) { convert_row(exec, rows.wire, rows.in[r], hidden, gate_up_input, scratch.input_row(r)); });
  for (std::size_t r = 0; r < total; ++r) {
    scratch.x_rows[r] = in_place ? rows.in[r] : scratch.input_row(r);
    scratch.y_rows[r] = scratch.hidden_row(r);
  }
  grouped_gemm(exec, rows, &FfnWeights::gate_up);

  // activation: hidden [R,2F] -> input [R,F] in the type that meets `down`
  each_row([&](std::size_t r) {
    float* gate = scratch.hidden_row(r);
    float* activated = scratch.output_row(r);  // free until `down`
    exec.table().swiglu(gate, gate + intermediate, intermediate, activated);
    convert_row(exec, DType::f32, activated, intermediate, down_input, scratch.input_row(r));
  });

  // down: [R,F] -> output [R,H], rounded to the wire type at this one point
  for (std::size_t r = 0; r < total; ++r) {
    scratch.x_rows[r] = scratch.input_row(r);
    scratch.y_rows[r] = scratch.output_row(r);
  }
  grouped_gemm(exec, rows, &FfnWeights::down);
  each_row(
      [&](std::size_t r) { convert_row(exec, DType::f32, scratch.output_row(r), hidden, rows.wire, rows.out[r]); });
}

}  // namespace expertmesh
