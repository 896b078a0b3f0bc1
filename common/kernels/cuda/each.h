// A function called for every element of a matrix, four at once where they are aligned.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/base/bf16.h"
#include "common/kernels/cuda/numbers.h"
#include "common/kernels/cuda/runtime.h"
#include "common/tensor/tensor.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

// ---- N neighbouring numbers, one load or store: N is 1, or 4 and the address that of a multiple of four of them.
template <unsigned N>
struct alignas(N * sizeof(float)) Floats {
  float v[N];
};
template <unsigned N>
struct alignas(N * sizeof(std::uint16_t)) Halves {
  std::uint16_t v[N];
};

template <unsigned N>
__device__ Floats<N> load(float const* p) {
  return *reinterpret_cast<Floats<N> const*>(p);
}
template <unsigned N>
__device__ Floats<N> load(bf16 const* p) {
  Halves<N> const bits = *reinterpret_cast<Halves<N> const*>(p);
  Floats<N> out;
  for (unsigned j = 0; j < N; ++j) out.v[j] = float_of_bf16(bits.v[j]);
  return out;
}
template <unsigned N>
__device__ Floats<N> load(fp16 const* p) {
  Halves<N> const bits = *reinterpret_cast<Halves<N> const*>(p);
  Floats<N> out;
  for (unsigned j = 0; j < N; ++j) out.v[j] = float_of_fp16(bits.v[j]);
  return out;
}
template <unsigned N>
__device__ void store(float* p, Floats<N> const& x) {
  *reinterpret_cast<Floats<N>*>(p) = x;
}
template <unsigned N>
__device__ void store(bf16* p, Floats<N> const& x) {
  Halves<N> bits;
  for (unsigned j = 0; j < N; ++j) bits.v[j] = bf16_of_float(x.v[j]);
  *reinterpret_cast<Halves<N>*>(p) = bits;
}

// ---- matrices as kernels have them
template <class T>
struct Rows {
  T* data;
  std::size_t stride;  // elements
  __device__ T* at(std::size_t row, std::size_t column) const { return data + row * stride + column; }
};
template <class T>
Rows<T> rows_of(MatrixView<T> x) {
  return {x.data, x.stride};
}

// Whether four elements of T can be loaded at once from any multiple of four elements behind a row's begin.
template <class T>
bool is_aligned(T* data, std::size_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}
template <class T>
bool is_aligned(Rows<T> const& rows) {
  return is_aligned(rows.data, rows.stride);
}

// ---- f.at<N>(row, part, i), N 1 or 4: elements i … i + N - 1 of a part of a row
template <class F>
struct EachElement {
  F f;
  unsigned parts;
  unsigned count;  // elements of a part
  bool aligned;
};

constexpr unsigned kEachThreads = 256;

template <class F>
__global__ void __launch_bounds__(kEachThreads) each_element(EachElement<F> a) {
  unsigned const groups = (a.count + 3) / 4;
  unsigned const index = blockIdx.y * blockDim.x + threadIdx.x;
  unsigned const part = index / groups;
  if (part >= a.parts) return;
  unsigned const first = (index - part * groups) * 4;
  if (a.aligned && first + 4 <= a.count) {
    a.f.template at<4>(blockIdx.x, part, first);
    return;
  }
  unsigned const end = first + 4 < a.count ? first + 4 : a.count;
  for (unsigned i = first; i < end; ++i) a.f.template at<1>(blockIdx.x, part, i);
}

// op: for errors. aligned: that f may be asked for four.
template <class F>
void for_each_element(Stream& stream, char const* op, std::size_t rows, std::size_t parts, std::size_t count,
                      bool aligned, F const& f) {
  std::size_t const threads_needed = parts * ((count + 3) / 4);
  if (threads_needed == 0) return;
  std::size_t const whole_warps = (threads_needed + kWarp - 1) / kWarp * kWarp;
  std::size_t const threads = whole_warps < kEachThreads ? whole_warps : kEachThreads;
  Grid const grid{.x = static_cast<unsigned>(rows),
                  .y = static_cast<unsigned>((threads_needed + threads - 1) / threads)};
  launch(each_element<F>, grid, static_cast<unsigned>(threads), 0, stream,
         EachElement<F>{f, static_cast<unsigned>(parts), static_cast<unsigned>(count), aligned});
  check_launch(stream, op);
}
// Of whole rows.
template <class F>
void for_each_element(Stream& stream, char const* op, std::size_t rows, std::size_t count, bool aligned, F const& f) {
  for_each_element(stream, op, rows, 1, count, aligned, f);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
