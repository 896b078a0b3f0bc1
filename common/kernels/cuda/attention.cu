#include <algorithm>

#include "common/base/check.h"
#include "common/kernels/cuda/attention_rows.h"
#include "common/kernels/cuda/attention_tiles.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/exec.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr std::size_t kBlocksToWalk =
    2;                                // for each multiprocessor: with so many, a block takes a stripe and not a tile
constexpr unsigned kBlocksEach = 32;  // of threads for each multiprocessor: the tokens of a launch, more make no sense

// Most units of so many tiles in which so many positions of whole blocks lie.
std::size_t most_units(std::size_t positions, SpanKind kind, std::size_t unit_tiles) {
  std::size_t const unit_blocks = unit_tiles * kTile / kBlock;
  std::size_t const blocks = (positions + kBlock - 1) / kBlock;
  std::size_t const before = kind == SpanKind::full ? 0 : unit_blocks - 1;  // in the first unit
  return (before + blocks + unit_blocks - 1) / unit_blocks;
}

constexpr std::size_t partial_bytes(std::size_t value_dim) {
  return (value_dim + 2) * sizeof(float);
}
// What the tokens of a launch leave, unless one alone leaves more: enough to fill the GPU some times over.
std::size_t launch_bytes(std::size_t value_dim, std::size_t num_multiprocessors) {
  return num_multiprocessors * kBlocksEach * kMostHeads * partial_bytes(value_dim);
}

template <class Load, unsigned V, unsigned kHeads>
void attend(AttendArguments const& a, std::size_t tokens, Stream& stream) {
  std::size_t const shared =
      sizeof(float) * kHeads * (kTile + std::max<std::size_t>(a.key_dim, std::size_t{V} * kThreads / 2));
  EM_CHECK(shared <= max_shared_bytes(stream), "keys of " << a.key_dim);
  launch(&attend_tile<Load, V, kHeads>,
         {.x = a.units * a.parts, .y = a.num_kv_heads, .z = static_cast<unsigned>(tokens)}, kThreads, shared, stream,
         a);
}
template <class Load, unsigned V>
void attend(AttendArguments const& a, std::size_t tokens, Stream& stream) {
  if (a.heads_each > 4) return attend<Load, V, 8>(a, tokens, stream);
  if (a.heads_each > 2) return attend<Load, V, 4>(a, tokens, stream);
  if (a.heads_each > 1) return attend<Load, V, 2>(a, tokens, stream);
  attend<Load, V, 1>(a, tokens, stream);
}

// ---- on tensor cores
// By the model's shape alone: a row's bits must not depend on the batch.
bool takes_rows(KvLayerShape const& kv, AttentionShape const& shape) {
  return kv.dtype == DType::bf16 && !shape.bias && kv.key_dim % 8 == 0 && kv.key_dim <= kMostKeyDim &&
         kv.value_dim % kWarpColumns == 0 && kv.value_dim <= kMostValueDim;
}

// How a call's rows are cut; no choice of it changes their bits.
struct RowsLaunch {
  void (*kernel)(AttendArguments) = nullptr;
  unsigned threads = 0;
  unsigned rows = 0;  // of a block
  std::size_t shared_bytes = 0;
};
template <class Shape>
RowsLaunch rows_launch(std::size_t key_dim) {
  return {&attend_rows<Shape>, kThreads * Shape::kTeams, Shape::kRows, Shape::shared_bytes(key_dim)};
}
RowsLaunch rows_launch(KvLayerShape const& kv, bool many, Stream& stream) {
  constexpr std::size_t kBesides = 8192;  // of static shared memory, at most
  std::size_t const groups = (kv.value_dim + kWarps * kWarpColumns - 1) / (kWarps * kWarpColumns);
  RowsLaunch const of_many = groups > 2   ? rows_launch<RowShape<2, 4, 1>>(kv.key_dim)
                             : groups > 1 ? rows_launch<RowShape<2, 2, 2>>(kv.key_dim)
                                          : rows_launch<RowShape<2, 1, 2>>(kv.key_dim);
  if (many && of_many.shared_bytes + kBesides <= max_shared_bytes(stream)) return of_many;
  return groups > 2   ? rows_launch<RowShape<1, 4, 1>>(kv.key_dim)
         : groups > 1 ? rows_launch<RowShape<1, 2, 1>>(kv.key_dim)
                      : rows_launch<RowShape<1, 1, 1>>(kv.key_dim);
}

}  // namespace

std::size_t CudaDevice::attention_scratch_bytes(ExecLimits const& limits, std::size_t num_multiprocessors) {
  return std::max(
      launch_bytes(limits.max_head_dim, num_multiprocessors),
      limits.max_heads * most_units(limits.max_positions, SpanKind::window, 1) * partial_bytes(limits.max_head_dim));
}

void CudaDevice::paged_attention(MatrixView<float const> q, TokenPlaces const& places, KvLayerShape const& kv,
                                 DeviceKv const& cache, AttentionShape const& shape, std::size_t most_positions,
                                 MatrixView<float> out) {
  constexpr std::size_t kMostTokens = 65535;  // of a grid
  bool const in_keys = kv.values == KvValues::in_keys;
  std::size_t const heads = shape.num_heads / kv.num_kv_heads;
  std::size_t const multiprocessors = num_multiprocessors(*stream_);
  std::size_t block_heads = kMostHeads;
  std::size_t block_tokens = 1;
  std::size_t unit_tiles = 1;
  bool const rows = takes_rows(kv, shape);
  RowsLaunch rows_of_block;
  if (rows) {
    bool const decodes = q.rows <= places.table_offsets.size();  // a token of each sequence, or the first of some
    rows_of_block = rows_launch(kv, heads > kRowTile || !decodes, *stream_);
    block_heads = rows_of_block.rows;
    block_tokens = std::max<std::size_t>(block_heads / heads, 1);
    std::size_t const blocks = (decodes ? q.rows : (q.rows + block_tokens - 1) / block_tokens) * kv.num_kv_heads *
                               ((heads + block_heads - 1) / block_heads) *
                               most_units(most_positions, shape.span.kind, kStripeTiles);
    if (blocks >= kBlocksToWalk * multiprocessors) unit_tiles = kStripeTiles;
  }
  std::size_t const parts = (heads + block_heads - 1) / block_heads;
  std::size_t const units = most_units(most_positions, shape.span.kind, unit_tiles);
  std::size_t const partials = shape.num_heads * units;  // of a token
  std::size_t const token_bytes = partials * partial_bytes(kv.value_dim);
  std::size_t const room = launch_bytes(kv.value_dim, multiprocessors);
  std::size_t const tokens_each = std::min({std::max<std::size_t>(room / token_bytes, 1), q.rows, kMostTokens});
  auto* const scratch = reinterpret_cast<float*>(scratch_.get(tokens_each * token_bytes));
  bool const vectors = kv.key_dim * size_of(kv.dtype) % 16 == 0 && kv.value_dim * size_of(kv.dtype) % 16 == 0;
  for (std::size_t t = 0; t < q.rows; t += tokens_each) {
    std::size_t const tokens = std::min(tokens_each, q.rows - t);
    AttendArguments const a{
        .q = q.row(t),
        .q_stride = q.stride,
        .out = out.row(t),
        .out_stride = out.stride,
        .positions = places.positions.data() + t,
        .sequences = places.sequences.data() + t,
        .block_tables = places.block_tables.data(),
        .table_offsets = places.table_offsets.data(),
        .last = places.last.empty() ? nullptr : places.last.data() + t,
        .keys = cache.keys,
        .values = in_keys ? cache.keys : cache.values,
        .num_kv_heads = static_cast<unsigned>(kv.num_kv_heads),
        .heads = static_cast<unsigned>(heads),
        .parts = static_cast<unsigned>(parts),
        .heads_each = static_cast<unsigned>((heads + parts - 1) / parts),
        .key_dim = static_cast<unsigned>(kv.key_dim),
        .value_dim = static_cast<unsigned>(kv.value_dim),
        .value_stride = static_cast<unsigned>(in_keys ? kv.key_dim : kv.value_dim),
        .scale = shape.scale,
        .span = {shape.span.kind, static_cast<std::uint32_t>(std::min<std::size_t>(shape.span.tokens, UINT32_MAX))},
        .sinks = shape.sinks.empty() ? nullptr : shape.sinks.data(),
        .bias = shape.bias ? shape.bias->at_zero(0) : nullptr,  // counts from the address of its numbers
        .bias_stride = shape.bias ? shape.bias->stride() : 0,
        .bias_reach = shape.bias ? shape.bias->reach() : 0,
        .tokens_each = static_cast<unsigned>(block_tokens),
        .unit_tiles = static_cast<unsigned>(unit_tiles),
        .fold_units = static_cast<unsigned>(rows ? kStripeTiles / unit_tiles : 1),
        .units = static_cast<unsigned>(units),
        .sums = scratch,
        .stats = scratch + tokens * partials * kv.value_dim};
    if (rows)
      launch(rows_of_block.kernel, {.x = a.units * a.parts, .y = a.num_kv_heads, .z = static_cast<unsigned>(tokens)},
             rows_of_block.threads, rows_of_block.shared_bytes, *stream_, a);
    else if (kv.dtype == DType::f32)
      vectors ? attend<Words4, 4>(a, tokens, *stream_) : attend<float, 1>(a, tokens, *stream_);
    else
      vectors ? attend<Words4, 8>(a, tokens, *stream_) : attend<std::uint16_t, 1>(a, tokens, *stream_);
    check_launch(*stream_, "paged_attention");
    launch(kv.value_dim % 4 == 0 ? &merge_units<4> : &merge_units<1>,
           {.x = static_cast<unsigned>(shape.num_heads), .y = static_cast<unsigned>(tokens)}, kThreads, 0, *stream_, a);
    check_launch(*stream_, "paged_attention");
  }
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
