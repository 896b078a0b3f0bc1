// Small row-wise ops around the GEMMs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/strong_id.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/tensor/dtype.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// x += y; both [T,H].
void add(Exec const& exec, MatrixView<float> x, MatrixView<float const> y);
// x *= factor; [T,H].
void scale(Exec const& exec, MatrixView<float> x, float factor);
// x[t] *= 1 / (1 + e^-gate[t]); x: [T,H], gate: [T,1].
void scale_rows_by_sigmoid(Exec const& exec, MatrixView<float> x, MatrixView<float const> gate);
// out[t*K+k] = weights[t*K+k] * x[t]; x: [T,H], out: [T*K,H]; weights on the host.
void scale_rows_into_slots(Exec const& exec, MatrixView<float const> x, std::span<float const> weights,
                           std::size_t experts_per_token, MatrixView<float> out);
// out[t] = sum over k = 0…K-1 in this order of slots[t*K+k]; slots: [T*K,H], out: [T,H].
void add_slots(Exec const& exec, MatrixView<float const> slots, std::size_t experts_per_token, MatrixView<float> out);
// x held within [-limit, limit]; NaN stays.
void clip(Exec const& exec, MatrixView<float> x, float limit);
// out[t] = table[ids[t]]: table [V,H] of `type` (f32, bf16 or f16), row-major.
void embedding(Exec const& exec, std::span<TokenId const> ids, DType type, std::byte const* table,
               MatrixView<float> out);
// out[i] = x[rows[i]]; rows on the host.
void gather_rows(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> rows,
                 MatrixView<float> out);
// out = x; both [T,H].
void copy_rows(Exec const& exec, MatrixView<float const> x, MatrixView<float> out);
// Columns of head h: out[t][h * to.stride + to.first + i] = x[t][h * from.stride + from.first + i], i < count.
void copy_head_columns(Exec const& exec, MatrixView<float const> x, HeadRange from, std::size_t num_heads,
                       std::size_t count, HeadRange to, MatrixView<float> out);
// Rows of x rounded to `wire` (f32 or bf16), row t at out + t * H * size_of(wire), on the host.
void to_wire(Exec const& exec, MatrixView<float const> x, DType wire, std::byte* out);
// out[t] = sum over k = 0…K-1 in this order of weights[t*K+k] * rows[t*K+k], each row H elements of `wire`; fp32, one
// fused multiply-add a term, starting from 0; a null row adds nothing. out: [T,H]; rows and weights on the host.
void combine(Exec const& exec, DType wire, std::span<std::byte const* const> rows, std::span<float const> weights,
             std::size_t experts_per_token, MatrixView<float> out);
// Only the rows named, one behind the other. rows: on the host; out: with a device of that, else of the host.
void gather_to_wire(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> rows, DType wire,
                    std::byte* out);
// combine() with a device that has some of the rows already: where device_rows [T*K] is null, it is the row of the
// host.
void combine(Exec const& exec, DType wire, std::span<std::byte const* const> rows,
             std::span<std::byte const* const> device_rows, std::span<float const> weights,
             std::size_t experts_per_token, MatrixView<float> out);
// The same numbers where the host can read them: x itself, or a copy in `room`.
MatrixView<float const> on_host(Exec const& exec, MatrixView<float const> x, std::vector<float>& room);
// Whether there is no infinity and no NaN among `count` numbers of `wire`.
bool all_finite(Exec const& exec, DType wire, std::byte const* numbers, std::size_t count);
}  // namespace expertmesh
