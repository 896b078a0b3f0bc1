// Keys and values of new positions to their places in the paged cache.
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/numbers.h"
#include "common/kernels/paged_attention.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kBlock = kKvBlockTokens;
constexpr unsigned kThreads = 128;

struct WriteArguments {
  float const* k;  // [T,G*DK]
  std::size_t k_stride;
  float const* v;  // [T,G*DV]
  std::size_t v_stride;
  std::uint32_t const *positions, *sequences, *block_tables, *table_offsets;
  void *keys, *values;
  unsigned key_dim, value_dim;  // value_dim: 0 where they are in the keys
};

EM_BOTH inline void store(float x, float* to) {
  *to = x;
}
EM_BOTH inline void store(float x, std::uint16_t* to) {
  *to = bf16_of_float(x);
}

// Grid: tokens, KV heads.
template <class T>
__global__ void write_places(WriteArguments a) {
  unsigned const t = blockIdx.x;
  unsigned const g = blockIdx.y;
  std::uint32_t const position = a.positions[t];
  std::size_t const block = a.block_tables[a.table_offsets[a.sequences[t]] + position / kBlock];
  std::size_t const row = (block * gridDim.y + g) * kBlock + position % kBlock;
  float const* const k = a.k + t * a.k_stride + g * std::size_t{a.key_dim};
  for (unsigned i = threadIdx.x; i < a.key_dim; i += kThreads)
    store(k[i], static_cast<T*>(a.keys) + row * a.key_dim + i);
  float const* const v = a.v + t * a.v_stride + g * std::size_t{a.value_dim};
  for (unsigned i = threadIdx.x; i < a.value_dim; i += kThreads)
    store(v[i], static_cast<T*>(a.values) + row * a.value_dim + i);
}

}  // namespace

void CudaDevice::kv_write(MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
                          KvLayerShape const& shape, DeviceKv const& cache) {
  WriteArguments const a{.k = k.data,
                         .k_stride = k.stride,
                         .v = v.data,
                         .v_stride = v.stride,
                         .positions = places.positions.data(),
                         .sequences = places.sequences.data(),
                         .block_tables = places.block_tables.data(),
                         .table_offsets = places.table_offsets.data(),
                         .keys = cache.keys,
                         .values = cache.values,
                         .key_dim = static_cast<unsigned>(shape.key_dim),
                         .value_dim = shape.values == KvValues::in_keys ? 0 : static_cast<unsigned>(shape.value_dim)};
  launch(shape.dtype == DType::f32 ? &write_places<float> : &write_places<std::uint16_t>,
         {.x = static_cast<unsigned>(k.rows), .y = static_cast<unsigned>(shape.num_kv_heads)}, kThreads, 0, *stream_,
         a);
  check_launch(*stream_, "kv_write");
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
