#include "common/kernels/rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/base/bf16.h"
#include "common/base/check.h"
#include "common/kernels/activation_rows.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

void add(Exec const& exec, MatrixView<float> x, MatrixView<float const> y) {
  EM_CHECK(x.rows == y.rows && x.cols == y.cols,
           "x [" << x.rows << "," << x.cols << "], y [" << y.rows << "," << y.cols << "]");
  if (Device* device = exec.device()) return device->add(x, y);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) exec.table().add(x.row(t), y.row(t), x.cols);
  });
}

void clip(Exec const& exec, MatrixView<float> x, float limit) {
  if (Device* device = exec.device()) return device->clip(x, limit);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t i = 0; i < x.cols; ++i) x.row(t)[i] = std::clamp(x.row(t)[i], -limit, limit);
  });
}

namespace {
void scale_row(float const* x, float factor, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}
}  // namespace

void scale(Exec const& exec, MatrixView<float> x, float factor) {
  if (Device* device = exec.device()) return device->scale(x, factor);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) scale_row(x.row(t), factor, x.cols, x.row(t));
  });
}

void scale_rows_by_sigmoid(Exec const& exec, MatrixView<float> x, MatrixView<float const> gate) {
  EM_CHECK(gate.rows == x.rows && gate.cols == 1, "gate [" << gate.rows << "," << gate.cols << "], T " << x.rows);
  if (Device* device = exec.device()) return device->scale_rows_by_sigmoid(x, gate);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      scale_row(x.row(t), 1.0F / (1.0F + std::exp(-gate.row(t)[0])), x.cols, x.row(t));
  });
}

void scale_rows_into_slots(Exec const& exec, MatrixView<float const> x, std::span<float const> weights,
                           std::size_t experts_per_token, MatrixView<float> out) {
  EM_CHECK(out.rows == x.rows * experts_per_token && weights.size() == out.rows && out.cols == x.cols,
           "T " << x.rows << ", K " << experts_per_token << ", slots " << out.rows);
  if (Device* device = exec.device())
    return device->scale_rows_into_slots(x, exec.scratch().stage(0, weights), experts_per_token, out);
  exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t slot = begin; slot < end; ++slot)
      scale_row(x.row(slot / experts_per_token), weights[slot], x.cols, out.row(slot));
  });
}

void add_slots(Exec const& exec, MatrixView<float const> slots, std::size_t experts_per_token, MatrixView<float> out) {
  EM_CHECK(slots.rows == out.rows * experts_per_token && slots.cols == out.cols,
           "T " << out.rows << ", K " << experts_per_token << ", slots " << slots.rows);
  if (Device* device = exec.device()) return device->add_slots(slots, experts_per_token, out);
  exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      std::memcpy(out.row(t), slots.row(t * experts_per_token), out.cols * sizeof(float));
      for (std::size_t k = 1; k < experts_per_token; ++k)
        exec.table().add(out.row(t), slots.row(t * experts_per_token + k), out.cols);
    }
  });
}

namespace {
// Rows of a mapped file need not be aligned.
template <class T>
void widen_row(std::byte const* row, MatrixView<float> out, std::size_t t) {
  for (std::size_t h = 0; h < out.cols; ++h) {
    T x;
    std::memcpy(&x, row + h * sizeof(T), sizeof(T));
    out.row(t)[h] = to_float(x);
  }
}
}  // namespace

void embedding(Exec const& exec, std::span<TokenId const> ids, DType type, std::byte const* table,
               MatrixView<float> out) {
  EM_CHECK(type == DType::f32 || type == DType::bf16 || type == DType::f16, "embedding of " << name_of(type));
  if (Device* device = exec.device()) return device->embedding(ids, type, table, out);
  exec.pool().parallel_for(ids.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      std::byte const* row = table + static_cast<std::size_t>(ids[t]) * out.cols * size_of(type);
      if (type == DType::f32)
        std::memcpy(out.row(t), row, out.cols * sizeof(float));
      else if (type == DType::bf16)
        widen_row<bf16>(row, out, t);
      else
        widen_row<fp16>(row, out, t);
    }
  });
}

void gather_rows(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> rows,
                 MatrixView<float> out) {
  EM_CHECK(out.rows == rows.size() && out.cols == x.cols, rows.size()
                                                              << " rows, out [" << out.rows << "," << out.cols << "]");
  if (Device* device = exec.device()) return device->gather_rows(x, exec.scratch().stage(0, rows), out);
  for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(out.row(i), x.row(rows[i]), x.cols * sizeof(float));
}

void copy_rows(Exec const& exec, MatrixView<float const> x, MatrixView<float> out) {
  EM_CHECK(x.rows == out.rows && x.cols == out.cols,
           "x [" << x.rows << "," << x.cols << "], out [" << out.rows << "," << out.cols << "]");
  if (exec.device()) return copy_head_columns(exec, x, {}, 1, x.cols, {}, out);
  for (std::size_t t = 0; t < x.rows; ++t) std::memcpy(out.row(t), x.row(t), x.cols * sizeof(float));
}

void copy_head_columns(Exec const& exec, MatrixView<float const> x, HeadRange from, std::size_t num_heads,
                       std::size_t count, HeadRange to, MatrixView<float> out) {
  EM_CHECK(x.rows == out.rows && num_heads > 0 && (num_heads - 1) * from.stride + from.first + count <= x.cols &&
               (num_heads - 1) * to.stride + to.first + count <= out.cols,
           "x [" << x.rows << "," << x.cols << "], out [" << out.rows << "," << out.cols << "], " << num_heads
                 << " heads, " << count << " columns");
  if (Device* device = exec.device()) return device->copy_head_columns(x, from, num_heads, count, to, out);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t h = 0; h < num_heads; ++h)
        std::copy_n(x.row(t) + h * from.stride + from.first, count, out.row(t) + h * to.stride + to.first);
  });
}

void to_wire(Exec const& exec, MatrixView<float const> x, DType wire, std::byte* out) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire " << name_of(wire));
  std::size_t const row_bytes = x.cols * size_of(wire);
  if (Device* device = exec.device()) {
    if (x.rows == 0) return;
    exec.scratch().check_wire(x.rows * row_bytes);
    device->to_wire(x, wire, exec.scratch().wire_rows.data());
    return device->download(out, exec.scratch().wire_rows.data(), x.rows * row_bytes);
  }
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) to_wire_row(exec, x.row(t), x.cols, wire, out + t * row_bytes);
  });
}

namespace {
// The rows go there one behind the other.
void combine_on_device(Exec const& exec, DType wire, std::span<std::byte const* const> rows,
                       std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) {
  if (rows.empty()) return;
  auto& scratch = exec.scratch();
  std::size_t const row_bytes = out.cols * size_of(wire);
  scratch.check_wire(rows.size() * row_bytes);
  std::vector<std::uint32_t> experts(rows.size(), kNoExpert);  // which one does not matter
  for (std::size_t slot = 0; slot < rows.size(); ++slot) {
    if (rows[slot] == nullptr) continue;
    experts[slot] = 0;
    std::memcpy(scratch.input.data() + slot * row_bytes, rows[slot], row_bytes);
  }
  exec.device()->upload(scratch.wire_rows.data(), scratch.input.data(), rows.size() * row_bytes);
  exec.device()->combine(wire, scratch.wire_rows.data(), scratch.stage(0, std::span<std::uint32_t const>(experts)),
                         scratch.stage(1, weights), experts_per_token, out);
}
}  // namespace

void combine(Exec const& exec, DType wire, std::span<std::byte const* const> rows, std::span<float const> weights,
             std::size_t experts_per_token, MatrixView<float> out) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire " << name_of(wire));
  EM_CHECK(rows.size() == out.rows * experts_per_token && weights.size() == rows.size(),
           "T " << out.rows << ", rows " << rows.size());
  if (exec.device()) return combine_on_device(exec, wire, rows, weights, experts_per_token, out);
  exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      std::memset(out.row(t), 0, out.cols * sizeof(float));
      for (std::size_t slot = t * experts_per_token; slot < (t + 1) * experts_per_token; ++slot) {
        if (rows[slot] == nullptr) continue;
        if (wire == DType::f32)
          exec.table().axpy_f32(weights[slot], reinterpret_cast<float const*>(rows[slot]), out.cols, out.row(t));
        else
          exec.table().axpy_bf16(weights[slot], reinterpret_cast<std::uint16_t const*>(rows[slot]), out.cols,
                                 out.row(t));
      }
    }
  });
}

void gather_to_wire(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> rows, DType wire,
                    std::byte* out) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire " << name_of(wire));
  if (Device* device = exec.device()) return device->gather_to_wire(x, exec.scratch().stage(0, rows), wire, out);
  std::size_t const row_bytes = x.cols * size_of(wire);
  exec.pool().parallel_for(rows.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t r = begin; r < end; ++r) to_wire_row(exec, x.row(rows[r]), x.cols, wire, out + r * row_bytes);
  });
}

void combine(Exec const& exec, DType wire, std::span<std::byte const* const> rows,
             std::span<std::byte const* const> device_rows, std::span<float const> weights,
             std::size_t experts_per_token, MatrixView<float> out) {
  EM_CHECK(
      rows.size() == out.rows * experts_per_token && weights.size() == rows.size() && device_rows.size() == rows.size(),
      "T " << out.rows << ", rows " << rows.size() << ", of the device " << device_rows.size());
  if (rows.empty()) return;
  auto& scratch = exec.scratch();
  std::size_t const row_bytes = out.cols * size_of(wire);
  scratch.check_wire(rows.size() * row_bytes);
  std::vector<std::byte const*> places(device_rows.begin(), device_rows.end());
  std::size_t used = 0;  // bytes of the rows of the host, which go there one behind the other
  for (std::size_t slot = 0; slot < rows.size(); ++slot) {
    if (places[slot] != nullptr || rows[slot] == nullptr) continue;
    std::memcpy(scratch.input.data() + used, rows[slot], row_bytes);
    places[slot] = scratch.wire_rows.data() + used;
    used += row_bytes;
  }
  if (used > 0) exec.device()->upload(scratch.wire_rows.data(), scratch.input.data(), used);
  exec.device()->combine_scattered(wire, scratch.stage(0, std::span<std::byte const* const>(places)),
                                   scratch.stage(1, weights), experts_per_token, out);
}

MatrixView<float const> on_host(Exec const& exec, MatrixView<float const> x, std::vector<float>& room) {
  Device* const device = exec.device();
  if (!device) return x;
  room.resize(x.rows * x.cols);
  for (std::size_t t = 0; x.stride != x.cols && t < x.rows; ++t)
    device->download(room.data() + t * x.cols, x.row(t), x.cols * sizeof(float));
  if (x.stride == x.cols && !room.empty()) device->download(room.data(), x.data, room.size() * sizeof(float));
  return {room.data(), x.rows, x.cols};
}

namespace {
// The exponent's bits are all ones in what is not finite: one more in its lowest place then reaches the sign's.
template <class Bits>
bool exponents_below(std::byte const* numbers, std::size_t count, Bits ones) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  auto const lowest = static_cast<Bits>(ones & (~ones + 1U));
  Bits reached = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, numbers + i * sizeof bits, sizeof bits);
    reached = static_cast<Bits>(reached | static_cast<Bits>((bits & ones) + lowest));
  }
  return (reached & kSign) == 0;
}
}  // namespace

bool all_finite(Exec const& exec, DType wire, std::byte const* numbers, std::size_t count) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire " << name_of(wire));
  std::atomic<bool> finite = true;
  exec.pool().parallel_for(count, [&](std::size_t begin, std::size_t end, std::size_t) {
    std::byte const* const part = numbers + begin * size_of(wire);
    if (!(wire == DType::f32 ? exponents_below<std::uint32_t>(part, end - begin, 0x7f800000U)
                             : exponents_below<std::uint16_t>(part, end - begin, std::uint16_t{0x7f80})))
      finite = false;
  });
  return finite;
}

}  // namespace expertmesh
