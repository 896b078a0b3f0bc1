#include "common/kernels/paged_attention.h"

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

static_assert(kKvBlockTokens == kPanelColumns, "a block's scores are one vector");

std::size_t block_elements(KvLayerShape const& shape) {
  return shape.num_kv_heads * shape.head_dim * kKvBlockTokens;
}

}  // namespace

KvLayer::KvLayer(KvLayerShape shape)
    : shape_(shape),
      keys_(shape.num_blocks * block_elements(shape) * size_of(shape.dtype)),
      values_(shape.num_blocks * block_elements(shape) * size_of(shape.dtype)) {
  EM_CHECK(shape.dtype == DType::f32 || shape.dtype == DType::bf16, "KV cache of " << name_of(shape.dtype));
}

std::size_t KvLayer::bytes_per_block(KvLayerShape const& shape) {
  return 2 * block_elements(shape) * size_of(shape.dtype);
}

void kv_write(Exec const& exec, MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
              KvLayer& cache) {
  KvLayerShape const& shape = cache.shape();
  std::size_t const d = shape.head_dim;
  EM_CHECK(k.cols == shape.num_kv_heads * d && v.cols == k.cols && k.rows == places.positions.size(),
           "k [" << k.rows << "," << k.cols << "]");
  auto const write = [&](auto* keys, auto* values, auto convert) {
    exec.pool().parallel_for(k.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t t = begin; t < end; ++t) {
        std::uint32_t const position = places.positions[t];
        std::size_t const block =
            places.block_tables[places.table_offsets[places.sequences[t]] + position / kKvBlockTokens];
        EM_CHECK(block < shape.num_blocks, "no block for position " << position);
        std::size_t const place = position % kKvBlockTokens;
        for (std::size_t g = 0; g < shape.num_kv_heads; ++g) {
          std::size_t const head = (block * shape.num_kv_heads + g) * d * kKvBlockTokens;
          for (std::size_t i = 0; i < d; ++i) {
            convert(k.row(t)[g * d + i], keys[head + i * kKvBlockTokens + place]);
            convert(v.row(t)[g * d + i], values[head + place * d + i]);
          }
        }
      }
    });
  };
  if (shape.dtype == DType::f32) {
    write(reinterpret_cast<float*>(cache.keys()), reinterpret_cast<float*>(cache.values()),
          [](float x, float& out) { out = x; });
  } else {
    write(reinterpret_cast<std::uint16_t*>(cache.keys()), reinterpret_cast<std::uint16_t*>(cache.values()),
          [&](float x, std::uint16_t& out) { exec.table().round_bf16(&x, 1, &out); });
  }
}

void paged_attention(Exec const& exec, MatrixView<float const> q, TokenPlaces const& places, KvLayer const& cache,
                     AttentionShape const& shape, MatrixView<float> out) {
  KvLayerShape const& kv = cache.shape();
  std::size_t const d = kv.head_dim;
  std::size_t const heads = shape.num_heads / kv.num_kv_heads;  // per KV head
  EM_CHECK(
      heads * kv.num_kv_heads == shape.num_heads && q.cols == shape.num_heads * d && out.cols == q.cols &&
          q.rows == places.positions.size(),
      "q [" << q.rows << "," << q.cols << "], " << shape.num_heads << " heads of " << d << " over " << kv.num_kv_heads);
  EM_CHECK(d <= exec.limits().max_columns, "heads of " << d);
  std::size_t const head_bytes = d * kKvBlockTokens * size_of(kv.dtype);
  auto const attend = kv.dtype == DType::f32 ? exec.table().attend_f32 : exec.table().attend_bf16;
  exec.pool().parallel_for(q.rows * kv.num_kv_heads, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    for (std::size_t i = begin; i < end; ++i) {
      std::size_t const t = i / kv.num_kv_heads;
      std::size_t const g = i % kv.num_kv_heads;
      std::uint32_t const last = places.positions[t];
      bool const cut = shape.window && last + 1 > *shape.window;
      std::uint32_t const first = cut ? static_cast<std::uint32_t>(last + 1 - *shape.window) : 0;
      std::uint32_t const* blocks = places.block_tables.data() + places.table_offsets[places.sequences[t]];
      EM_CHECK(blocks[first / kKvBlockTokens] != kNoKvBlock, "position " << first << " has been freed");
      attend({.q = q.row(t) + g * heads * d,
              .out = out.row(t) + g * heads * d,
              .heads = heads,
              .head_dim = d,
              .blocks = blocks,
              .keys = cache.keys() + g * head_bytes,
              .values = cache.values() + g * head_bytes,
              .block_stride = block_elements(kv),
              .first = first,
              .last = last,
              .scale = shape.scale,
              .accumulator = exec.scratch().attention.data() + thread * exec.scratch().attention_row});
    }
  });
}

}  // namespace expertmesh
