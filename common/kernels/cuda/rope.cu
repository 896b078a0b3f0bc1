// Rotary position embedding: a thread turns four neighbouring pairs of a head, or one.
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/each.h"
#include "common/kernels/rope.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

__device__ void rotate(float& a, float& b, float cos, float sin) {
  float const a0 = a;
  a = a0 * cos - b * sin;
  b = b * cos + a0 * sin;
}

struct Rope {
  Rows<float> x;  // from the first rotated element of head 0 on
  Rows<float const> cos;
  Rows<float const> sin;
  std::size_t head_dim;
  unsigned half;
  bool interleaved;

  template <unsigned N>
  __device__ void at(unsigned t, unsigned head, unsigned i) const {
    float* const e = x.at(t, head * head_dim);
    Floats<N> const c = load<N>(cos.at(t, i));
    Floats<N> const s = load<N>(sin.at(t, i));
    if (interleaved)
      neighbours(e + 2 * i, c, s);
    else
      halves(e + i, e + half + i, c, s);
  }

 private:
  template <unsigned N>
  static __device__ void halves(float* first, float* second, Floats<N> const& c, Floats<N> const& s) {
    Floats<N> a = load<N>(first);
    Floats<N> b = load<N>(second);
    for (unsigned j = 0; j < N; ++j) rotate(a.v[j], b.v[j], c.v[j], s.v[j]);
    store(first, a);
    store(second, b);
  }
  template <unsigned N>
  static __device__ void neighbours(float* pairs, Floats<N> const& c, Floats<N> const& s) {
    Floats<N> lower = load<N>(pairs);
    Floats<N> upper = load<N>(pairs + N);
    float e[2 * N];
    for (unsigned j = 0; j < N; ++j) e[j] = lower.v[j];
    for (unsigned j = 0; j < N; ++j) e[N + j] = upper.v[j];
    for (unsigned j = 0; j < N; ++j) rotate(e[2 * j], e[2 * j + 1], c.v[j], s.v[j]);
    for (unsigned j = 0; j < N; ++j) lower.v[j] = e[j];
    for (unsigned j = 0; j < N; ++j) upper.v[j] = e[N + j];
    store(pairs, lower);
    store(pairs + N, upper);
  }
};

}  // namespace

void CudaDevice::apply_rope(MatrixView<float> x, RopeHeads const& heads, MatrixView<float const> cos,
                            MatrixView<float const> sin) {
  std::size_t const half = cos.cols;
  Rope const f{{x.data + heads.first, x.stride}, rows_of(cos),     rows_of(sin), heads.head_dim,
               static_cast<unsigned>(half),      heads.interleaved};
  bool const aligned = is_aligned(f.x) && is_aligned(f.cos) && is_aligned(f.sin) && heads.head_dim % 4 == 0 &&
                       (heads.interleaved || half % 4 == 0);
  for_each_element(*stream_, "apply_rope", x.rows, heads.num_heads, half, aligned, f);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
