// The small row-wise ops.
#include "common/base/check.h"
#include "common/kernels/cuda/activation.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/each.h"
#include "common/kernels/rows.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr std::uint32_t kNoExpertSlot = 0xffffffff;  // kNoExpert

struct Add {
  Rows<float> x;
  Rows<float const> y;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    Floats<N> sum = load<N>(x.at(t, i));
    Floats<N> const other = load<N>(y.at(t, i));
    for (unsigned j = 0; j < N; ++j) sum.v[j] += other.v[j];
    store(x.at(t, i), sum);
  }
};

// out[t] = factor * factors[t] * x[t / rows_per_x]
struct Scale {
  Rows<float const> x;
  unsigned rows_per_x;
  float const* factors;  // or null: none
  float factor;
  Rows<float> out;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    float const f = factors ? factors[t] : factor;
    Floats<N> scaled = load<N>(x.at(t / rows_per_x, i));
    for (unsigned j = 0; j < N; ++j) scaled.v[j] *= f;
    store(out.at(t, i), scaled);
  }
};

struct ScaleByPosition {
  Rows<float> x;
  std::uint32_t const* positions;
  float floor;
  float scale;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    float const stretches = floorf((static_cast<float>(positions[t]) + 1.0F) / floor);
    float const factor = log1pf(stretches) * scale + 1.0F;
    Floats<N> scaled = load<N>(x.at(t, i));
    for (unsigned j = 0; j < N; ++j) scaled.v[j] *= factor;
    store(x.at(t, i), scaled);
  }
};

struct ScaleBySigmoid {
  Rows<float> x;
  Rows<float const> gate;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    float const factor = 1.0F / (1.0F + expf(-*gate.at(t, 0)));
    Floats<N> scaled = load<N>(x.at(t, i));
    for (unsigned j = 0; j < N; ++j) scaled.v[j] *= factor;
    store(x.at(t, i), scaled);
  }
};

struct AddSlots {
  Rows<float const> slots;
  unsigned experts_per_token;
  Rows<float> out;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    std::size_t const first = static_cast<std::size_t>(t) * experts_per_token;
    Floats<N> sum = load<N>(slots.at(first, i));
    for (unsigned k = 1; k < experts_per_token; ++k) {
      Floats<N> const next = load<N>(slots.at(first + k, i));
      for (unsigned j = 0; j < N; ++j) sum.v[j] += next.v[j];
    }
    store(out.at(t, i), sum);
  }
};

struct Clip {
  Rows<float> x;
  float limit;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    Floats<N> v = load<N>(x.at(t, i));
    for (unsigned j = 0; j < N; ++j) v.v[j] = smaller(limit, larger(-limit, v.v[j]));
    store(x.at(t, i), v);
  }
};

// out[t] = x[rows[t]], or x[t] where there are no rows.
template <class From, class To, class Index = std::uint32_t>
struct CopyRows {
  Rows<From const> x;
  Index const* rows;
  Rows<To> out;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    std::size_t const row = rows ? static_cast<std::size_t>(rows[t]) : t;
    store(out.at(t, i), load<N>(x.at(row, i)));
  }
};

// out[t] = x[t], and each row brings some of the numbers.
template <class To>
struct CopyRowsWith {
  Rows<float const> x;
  Rows<To> out;
  std::uint32_t const* numbers;
  std::uint32_t* numbers_out;
  unsigned per_row;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    store(out.at(t, i), load<N>(x.at(t, i)));
    if (i != 0) return;
    for (unsigned k = t * per_row; k < (t + 1) * per_row; ++k) numbers_out[k] = numbers[k];
  }
};

struct CopyHeadColumns {
  Rows<float const> x;
  HeadRange from;
  Rows<float> out;
  HeadRange to;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned head, unsigned i) const {
    store(out.at(t, head * to.stride + to.first + i), load<N>(x.at(t, head * from.stride + from.first + i)));
  }
};

// The rows of the slots, one behind the other, but of those that have no expert.
template <class Wire>
struct RowsOfSlots {
  static constexpr bool kLooks = false;
  Rows<Wire const> rows;
  std::uint32_t const* experts;
  __device__ Wire const* of(std::size_t slot) const {
    return experts[slot] == kNoExpertSlot ? nullptr : rows.at(slot, 0);
  }
};
// Or wherever they are.
template <class Wire>
struct RowsAnywhere {
  static constexpr bool kLooks = false;
  std::byte const* const* rows;
  __device__ Wire const* of(std::size_t slot) const { return reinterpret_cast<Wire const*>(rows[slot]); }
};

// Or with the holders of their experts, each of which has room for those of all slots.
template <class Wire>
struct RowsHeld {
  static constexpr bool kLooks = true;  // for what is not finite
  std::byte const* const* of_holder;
  std::uint32_t const* holder_of;
  std::uint32_t const* experts;
  std::size_t row_bytes;
  unsigned num_experts;
  std::uint32_t* not_finite;
  __device__ Wire const* of(std::size_t slot) const {
    if (experts[slot] >= num_experts) return nullptr;
    return reinterpret_cast<Wire const*>(of_holder[holder_of[experts[slot]]] + slot * row_bytes);
  }
  template <unsigned N>
  __device__ void look_at(Floats<N> const& row) const {
    bool finite = true;
    for (unsigned j = 0; j < N; ++j) finite = finite && (bits_of_float(row.v[j]) & 0x7f800000U) != 0x7f800000U;
    if (!finite) atomicMax(not_finite, 1U);
  }
};

template <class Slots>
struct Combine {
  Slots slots;
  float const* weights;
  unsigned experts_per_token;
  Rows<float> out;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    Floats<N> sum{};
    for (unsigned k = 0; k < experts_per_token; ++k) {
      std::size_t const slot = static_cast<std::size_t>(t) * experts_per_token + k;
      auto const* const from = slots.of(slot);
      if (from == nullptr) continue;
      Floats<N> const row = load<N>(from + i);
      if constexpr (Slots::kLooks) slots.look_at(row);
      for (unsigned j = 0; j < N; ++j) sum.v[j] = fmaf(weights[slot], row.v[j], sum.v[j]);
    }
    store(out.at(t, i), sum);
  }
};

struct Activate {
  ActivationSpec f;
  Rows<float const> gate;  // null: none
  Rows<float const> up;
  Rows<float> out;
  template <unsigned N>
  __device__ void at(unsigned t, unsigned /*part*/, unsigned i) const {
    Floats<N> x = load<N>(up.at(t, i));
    if (gate.data) {
      Floats<N> const g = load<N>(gate.at(t, i));
      for (unsigned j = 0; j < N; ++j) x.v[j] = gated_activation(f, g.v[j], x.v[j]);
    } else {
      for (unsigned j = 0; j < N; ++j) x.v[j] = activation(f.kind, x.v[j]);
    }
    store(out.at(t, i), x);
  }
};

void scale_by(Stream& stream, char const* op, Scale const& f, std::size_t rows, std::size_t cols) {
  for_each_element(stream, op, rows, cols, is_aligned(f.x) && is_aligned(f.out), f);
}

template <class From, class To, class Index = std::uint32_t>
void copy_rows(Stream& stream, char const* op, Rows<From const> x, std::span<Index const> rows, Rows<To> out,
               std::size_t num_rows, std::size_t cols) {
  for_each_element(stream, op, num_rows, cols, is_aligned(x) && is_aligned(out),
                   CopyRows<From, To, Index>{x, rows.empty() ? nullptr : rows.data(), out});
}

// f(a T{}), T being what a type is stored as.
template <class F>
void with_wire(DType wire, F f) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire " << name_of(wire));
  if (wire == DType::f32)
    f(float{});
  else
    f(bf16{});
}

}  // namespace

void CudaDevice::ffn_activation(ActivationSpec const& f, bool gated, MatrixView<float const> in,
                                MatrixView<float> out) {
  EM_CHECK(gated || f.kind != Activation::clamped_silu, "no gate");
  Activate const activate{
      f, {gated ? in.data : nullptr, in.stride}, {in.data + (gated ? out.cols : 0), in.stride}, rows_of(out)};
  bool const aligned = is_aligned(activate.gate) && is_aligned(activate.up) && is_aligned(activate.out);
  for_each_element(*stream_, "ffn_activation", out.rows, out.cols, aligned, activate);
}

void CudaDevice::add(MatrixView<float> x, MatrixView<float const> y) {
  Add const f{rows_of(x), rows_of(y)};
  for_each_element(*stream_, "add", x.rows, x.cols, is_aligned(f.x) && is_aligned(f.y), f);
}

void CudaDevice::scale(MatrixView<float> x, float factor) {
  scale_by(*stream_, "scale", {rows_of<float const>(x), 1, nullptr, factor, rows_of(x)}, x.rows, x.cols);
}

void CudaDevice::scale_by_position(MatrixView<float> x, std::span<std::uint32_t const> positions, float floor,
                                   float scale) {
  ScaleByPosition const f{rows_of(x), positions.data(), floor, scale};
  for_each_element(*stream_, "scale_by_position", x.rows, x.cols, is_aligned(f.x), f);
}

void CudaDevice::scale_rows_by_sigmoid(MatrixView<float> x, MatrixView<float const> gate) {
  ScaleBySigmoid const f{rows_of(x), rows_of(gate)};
  for_each_element(*stream_, "scale_rows_by_sigmoid", x.rows, x.cols, is_aligned(f.x), f);
}

void CudaDevice::scale_rows_into_slots(MatrixView<float const> x, std::span<float const> weights,
                                       std::size_t experts_per_token, MatrixView<float> out) {
  scale_by(*stream_, "scale_rows_into_slots",
           {rows_of(x), static_cast<unsigned>(experts_per_token), weights.data(), 1, rows_of(out)}, out.rows, out.cols);
}

void CudaDevice::add_slots(MatrixView<float const> slots, std::size_t experts_per_token, MatrixView<float> out) {
  AddSlots const f{rows_of(slots), static_cast<unsigned>(experts_per_token), rows_of(out)};
  for_each_element(*stream_, "add_slots", out.rows, out.cols, is_aligned(f.slots) && is_aligned(f.out), f);
}

void CudaDevice::clip(MatrixView<float> x, float limit) {
  Clip const f{rows_of(x), limit};
  for_each_element(*stream_, "clip", x.rows, x.cols, is_aligned(f.x), f);
}

void CudaDevice::embedding(std::span<TokenId const> ids, DType type, std::byte const* table, MatrixView<float> out) {
  auto const widen = [&](auto stored) {
    using Stored = decltype(stored);
    Rows<Stored const> const rows{reinterpret_cast<Stored const*>(table), out.cols};
    copy_rows(*stream_, "embedding", rows, ids, rows_of(out), ids.size(), out.cols);
  };
  if (type == DType::f16)
    widen(fp16{});
  else
    with_wire(type, widen);
}

void CudaDevice::gather_rows(MatrixView<float const> x, std::span<std::uint32_t const> rows, MatrixView<float> out) {
  copy_rows(*stream_, "gather_rows", rows_of(x), rows, rows_of(out), rows.size(), out.cols);
}

void CudaDevice::copy_head_columns(MatrixView<float const> x, HeadRange from, std::size_t num_heads, std::size_t count,
                                   HeadRange to, MatrixView<float> out) {
  CopyHeadColumns const f{rows_of(x), from, rows_of(out), to};
  bool const aligned =
      is_aligned(f.x) && is_aligned(f.out) && (from.stride % 4 | from.first % 4 | to.stride % 4 | to.first % 4) == 0;
  for_each_element(*stream_, "copy_head_columns", x.rows, num_heads, count, aligned, f);
}

void CudaDevice::to_wire(MatrixView<float const> x, DType wire, std::byte* out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Rows<Stored> const to{reinterpret_cast<Stored*>(out), x.cols};
    copy_rows(*stream_, "to_wire", rows_of(x), std::span<std::uint32_t const>{}, to, x.rows, x.cols);
  });
}

void CudaDevice::to_wire_with(MatrixView<float const> x, DType wire, std::span<std::uint32_t const> numbers,
                              std::byte* out, std::uint32_t* numbers_out) {
  EM_CHECK(x.rows > 0 && numbers.size() % x.rows == 0, numbers.size() << " numbers with " << x.rows << " rows");
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    CopyRowsWith<Stored> const f{rows_of(x),
                                 {reinterpret_cast<Stored*>(out), x.cols},
                                 numbers.data(),
                                 numbers_out,
                                 static_cast<unsigned>(numbers.size() / x.rows)};
    for_each_element(*stream_, "to_wire_with", x.rows, x.cols, is_aligned(f.x) && is_aligned(f.out), f);
  });
}

void CudaDevice::gather_to_wire(MatrixView<float const> x, std::span<std::uint32_t const> rows, DType wire,
                                std::byte* out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Rows<Stored> const to{reinterpret_cast<Stored*>(out), x.cols};
    copy_rows(*stream_, "gather_to_wire", rows_of(x), rows, to, rows.size(), x.cols);
  });
}

void CudaDevice::gather_from_wire(DType wire, std::byte const* rows, std::span<std::uint32_t const> index,
                                  MatrixView<float> out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Rows<Stored const> const from{reinterpret_cast<Stored const*>(rows), out.cols};
    copy_rows(*stream_, "gather_from_wire", from, index, rows_of(out), index.size(), out.cols);
  });
}

void CudaDevice::from_wire(DType wire, std::byte const* rows, MatrixView<float> out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Rows<Stored const> const from{reinterpret_cast<Stored const*>(rows), out.cols};
    copy_rows(*stream_, "from_wire", from, std::span<std::uint32_t const>{}, rows_of(out), out.rows, out.cols);
  });
}

void CudaDevice::combine(DType wire, std::byte const* rows, std::span<std::uint32_t const> experts,
                         std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Combine<RowsOfSlots<Stored>> const f{{{reinterpret_cast<Stored const*>(rows), out.cols}, experts.data()},
                                         weights.data(),
                                         static_cast<unsigned>(experts_per_token),
                                         rows_of(out)};
    for_each_element(*stream_, "combine", out.rows, out.cols, is_aligned(f.slots.rows) && is_aligned(f.out), f);
  });
}

void CudaDevice::combine_scattered(DType wire, std::span<std::byte const* const> rows, std::span<float const> weights,
                                   std::size_t experts_per_token, MatrixView<float> out) {
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Combine<RowsAnywhere<Stored>> const f{
        {rows.data()}, weights.data(), static_cast<unsigned>(experts_per_token), rows_of(out)};
    // Rows lie in buffers that begin at 256 bytes: aligned for four if whole rows are.
    for_each_element(*stream_, "combine_scattered", out.rows, out.cols, out.cols % 4 == 0 && is_aligned(f.out), f);
  });
}

void CudaDevice::combine_held(DType wire, HeldRows const& rows, std::span<std::uint32_t const> experts,
                              std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) {
  EM_CHECK(experts.size() == out.rows * experts_per_token && weights.size() == experts.size(),
           "T " << out.rows << ", K " << experts_per_token << ", " << experts.size() << " slots");
  with_wire(wire, [&](auto stored) {
    using Stored = decltype(stored);
    Combine<RowsHeld<Stored>> const f{
        {rows.of_holder.data(), rows.holder_of.data(), experts.data(), out.cols * sizeof(Stored),
         static_cast<unsigned>(rows.holder_of.size()), rows.not_finite},
        weights.data(),
        static_cast<unsigned>(experts_per_token),
        rows_of(out)};
    for_each_element(*stream_, "combine_held", out.rows, out.cols, out.cols % 4 == 0 && is_aligned(f.out), f);
  });
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
