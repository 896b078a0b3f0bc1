#include "common/kernels/paged_attention.h"

#include <algorithm>

#include "common/base/bf16.h"
#include "common/base/check.h"
#include "common/base/divided_up.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/int8_group.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

static_assert(kKvBlockTokens == kLanes, "a block's scores are one vector");

// Of bfloat16, keys lie in pairs of their numbers, values in pairs of positions.
constexpr std::size_t kPair = 2;

// Bytes of what a KV head has of a block.
struct HeadLayout {
  explicit HeadLayout(KvLayerShape const& shape) {
    std::size_t const step = shape.dtype == DType::bf16 ? kPair : 1;
    values = divided_up(shape.key_dim, step) * step * kKvBlockTokens * size_of(shape.dtype);
    scales = values + value_elements(shape) * size_of(shape.dtype);
    all = scales + (shape.dtype == DType::i8 ? 2 * kKvBlockTokens * sizeof(float) : 0);
  }
  static std::size_t value_elements(KvLayerShape const& shape) {
    return shape.values == KvValues::in_keys ? 0 : shape.value_dim * kKvBlockTokens;
  }
  std::size_t values, scales;  // offsets; keys come first
  std::size_t all;
};

// How the work is cut: into parts of at most this many tokens of a sequence, KV heads, and query heads of each of
// those.
struct AttendCut {
  std::size_t tokens, kv_heads, heads;
};

// All query heads of a KV head together, unless they are too many or threads would have nothing to do; then tokens,
// which read the same, then KV heads, which lie side by side: as many as there is room for, unless threads would have
// too little of it to be dealt evenly. pairs: of tokens and KV heads.
AttendCut cut_attention(std::size_t heads, std::size_t kv_heads, std::size_t pairs, std::size_t num_threads) {
  constexpr std::size_t kHeadStep = 4;
  constexpr std::size_t kPartsAThread = 8;
  std::size_t const parts = std::max(divided_up(heads, kRowsPerPart), divided_up(num_threads, pairs));
  std::size_t const heads_each = std::min(heads, divided_up(divided_up(heads, parts), kHeadStep) * kHeadStep);
  std::size_t const at_once =
      std::clamp<std::size_t>(pairs / (num_threads * kPartsAThread), 1, kRowsPerPart / heads_each);
  return {.tokens = at_once, .kv_heads = heads_each == heads ? std::min(at_once, kv_heads) : 1, .heads = heads_each};
}

// A device starts threads and makes room in every token for the one that attends to the most. So tokens go to it
// together while those that attend to less do not leave more of it empty than the call is worth.
struct TokensTogether {
  std::size_t count = 0;
  std::size_t most_positions = 0;  // that one of them attends to, from the beginning of the first block on
};
TokensTogether tokens_together(TokenPlaces const& places, AttentionSpan const& span, std::size_t begin) {
  constexpr std::size_t kEmptyAnyhow = 1 << 16;  // positions; another call takes longer
  TokensTogether out;
  std::size_t sum = 0;
  for (std::size_t t = begin; t < places.positions.size(); ++t) {
    std::size_t const first = span.first(places.positions[t]) / kKvBlockTokens * kKvBlockTokens;
    std::size_t const last = places.last.empty() ? places.positions[t] : places.last[t];
    std::size_t const most = std::max(out.most_positions, last + 1 - first);
    sum += last + 1 - first;
    if (out.count > 0 && (out.count + 1) * most > 2 * sum + kEmptyAnyhow) break;
    out = {.count = out.count + 1, .most_positions = most};
  }
  return out;
}

// Most positions of whole blocks that a token before `end` attends to.
std::size_t most_positions_before(std::size_t end, AttentionSpan const& span) {
  return span.kind == SpanKind::full ? end : std::min(end, span.tokens + kKvBlockTokens - 1);
}

// Where token t's keys and values go.
std::size_t block_to_write(TokenPlaces const& places, std::size_t t, std::size_t num_blocks) {
  std::uint32_t const position = places.positions[t];
  std::size_t const block = places.block_tables[places.table_offsets[places.sequences[t]] + position / kKvBlockTokens];
  EM_CHECK(block < num_blocks, "no block for position " << position);
  return block;
}

// x: n numbers, to[i * stride] the whole ones, times the scale returned.
float write_int8(float const* x, std::size_t n, std::int8_t* to, std::size_t stride) {
  Int8Scale const s = int8_scale_of(x, n);
  for (std::size_t i = 0; i < n; ++i)
    to[i * stride] = static_cast<std::int8_t>(s.inverse == 0 ? 0 : int8_of(x[i], s.inverse));
  return s.scale;
}

// k: [DK], v: [DV] or nothing, of one KV head and a position of a block. head: what that head has of the block.
void write_head_f32(float const* k, float const* v, KvLayerShape const& shape, std::size_t position, std::byte* head) {
  float* const key = reinterpret_cast<float*>(head) + position;
  for (std::size_t i = 0; i < shape.key_dim; ++i) key[i * kKvBlockTokens] = k[i];
  auto* const values = reinterpret_cast<float*>(head + HeadLayout(shape).values);
  if (v) std::copy_n(v, shape.value_dim, values + position * shape.value_dim);
}

void write_head_bf16(float const* k, float const* v, KvLayerShape const& shape, std::size_t position, std::byte* head) {
  bf16* const key = reinterpret_cast<bf16*>(head) + position * kPair;
  for (std::size_t i = 0; i < shape.key_dim; i += kPair)
    for (std::size_t j = 0; j < kPair; ++j)
      key[i * kKvBlockTokens + j] = to_bf16(i + j < shape.key_dim ? k[i + j] : 0.0F);
  if (!v) return;
  auto* const values = reinterpret_cast<bf16*>(head + HeadLayout(shape).values);
  bf16* const value = values + position / kPair * kPair * shape.value_dim + position % kPair;
  for (std::size_t i = 0; i < shape.value_dim; ++i) value[i * kPair] = to_bf16(v[i]);
}

void write_head_int8(float const* k, float const* v, KvLayerShape const& shape, std::size_t position, std::byte* head) {
  HeadLayout const layout(shape);
  bool const in_keys = shape.values == KvValues::in_keys;
  std::size_t const first = in_keys ? shape.value_dim : shape.key_dim;  // elements with the first scale
  auto* const key = reinterpret_cast<std::int8_t*>(head) + position;
  auto* const values = reinterpret_cast<std::int8_t*>(head + layout.values);
  float* const scale = reinterpret_cast<float*>(head + layout.scales) + position;
  scale[0] = write_int8(k, first, key, kKvBlockTokens);
  scale[kKvBlockTokens] =
      in_keys ? write_int8(k + first, shape.key_dim - first, key + first * kKvBlockTokens, kKvBlockTokens)
              : write_int8(v, shape.value_dim, values + position * shape.value_dim, 1);
}

}  // namespace

TokenPlaces TokenPlaces::part(std::size_t begin, std::size_t count) const {
  TokenPlaces out = *this;
  out.positions = positions.subspan(begin, count);
  out.sequences = sequences.subspan(begin, count);
  if (!last.empty()) out.last = last.subspan(begin, count);
  if (on_device.positions != nullptr) {
    out.on_device.positions += begin;
    out.on_device.sequences += begin;
    if (on_device.last != nullptr) out.on_device.last += begin;
  }
  return out;
}

TokenPlaces TokenPlaces::for_device() const {
  EM_CHECK(on_device.positions != nullptr && (last.empty() || on_device.last != nullptr),
           "places of " << positions.size() << " tokens that the device does not have");
  return {.positions = {on_device.positions, positions.size()},
          .sequences = {on_device.sequences, sequences.size()},
          .block_tables = {on_device.block_tables, block_tables.size()},
          .table_offsets = {on_device.table_offsets, table_offsets.size()},
          .last = {on_device.last, last.size()}};
}

KvLayer::KvLayer(KvLayerShape shape, DeviceMemory* device)
    : shape_(shape),
      blocks_(device ? 0 : shape.num_blocks * bytes_per_block(shape)),
      keys_(device ? shape.num_blocks * shape.num_kv_heads * shape.key_dim * kKvBlockTokens * size_of(shape.dtype) : 0,
            device),
      values_(
          device ? shape.num_blocks * shape.num_kv_heads * HeadLayout::value_elements(shape) * size_of(shape.dtype) : 0,
          device) {
  EM_CHECK(shape.dtype == DType::f32 || shape.dtype == DType::bf16 || (shape.dtype == DType::i8 && !device),
           "KV cache of " << name_of(shape.dtype));
  EM_CHECK(shape.values == KvValues::separate || shape.value_dim <= shape.key_dim,
           "values of " << shape.value_dim << " in keys of " << shape.key_dim);
}

std::size_t KvLayer::bytes_per_block(KvLayerShape const& shape) {
  return shape.num_kv_heads * HeadLayout(shape).all;
}

RelativeBias::RelativeBias(std::size_t num_heads, std::uint32_t reach)
    : reach_(reach), values_(num_heads, std::size_t{2} * reach + 1 + 2 * (kKvBlockTokens - 1)) {}

float const* RelativeBias::at_zero(std::size_t head) const {
  return values_.view().row(head) + reach_ + kKvBlockTokens - 1;
}

void RelativeBias::set(std::size_t head, std::int64_t distance, float value) {
  std::int64_t const reach = reach_;
  EM_CHECK(-reach <= distance && distance <= reach, "distance " << distance << ", reach " << reach);
  float* const row = values_.view().row(head);
  auto const at = static_cast<std::size_t>(distance + reach) + kKvBlockTokens - 1;
  row[at] = value;
  for (std::size_t i = 1; i < kKvBlockTokens; ++i) {
    if (distance == -reach) row[at - i] = value;
    if (distance == reach) row[at + i] = value;
  }
}

RelativeBias RelativeBias::copy_to(DeviceMemory& device) const {
  RelativeBias copy(0, reach_);
  copy.values_ = Matrix<float>(values_.view().rows, values_.view().cols, &device);
  device.upload(copy.values_.view().data, values_.view().data, values_.size_bytes());
  return copy;
}

void check_blocks(TokenPlaces const& places, std::size_t num_blocks) {
  for (std::size_t t = 0; t < places.positions.size(); ++t) (void)block_to_write(places, t, num_blocks);
}

void kv_write(Exec const& exec, MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
              KvLayer& cache) {
  KvLayerShape const& shape = cache.shape();
  std::size_t const dk = shape.key_dim;
  std::size_t const dv = shape.values == KvValues::in_keys ? 0 : shape.value_dim;
  EM_CHECK(k.cols == shape.num_kv_heads * dk && v.cols == shape.num_kv_heads * dv &&
               k.rows == places.positions.size() && (dv == 0 || v.rows == k.rows),
           "k [" << k.rows << "," << k.cols << "], v [" << v.rows << "," << v.cols << "]");
  if (Device* device = exec.device()) {
    if (k.rows == 0) return;
    check_blocks(places, shape.num_blocks);
    return device->kv_write(k, v, places.for_device(), shape, cache.on_device());
  }
  auto const write_head = shape.dtype == DType::f32    ? write_head_f32
                          : shape.dtype == DType::bf16 ? write_head_bf16
                                                       : write_head_int8;
  std::size_t const head_bytes = HeadLayout(shape).all;
  exec.pool().parallel_for(k.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      std::size_t const block = block_to_write(places, t, shape.num_blocks);
      for (std::size_t g = 0; g < shape.num_kv_heads; ++g)
        write_head(k.row(t) + g * dk, dv == 0 ? nullptr : v.row(t) + g * dv, shape,
                   places.positions[t] % kKvBlockTokens,
                   cache.blocks().data() + (block * shape.num_kv_heads + g) * head_bytes);
    }
  });
}

void paged_attention(Exec const& exec, MatrixView<float const> q, TokenPlaces const& places, KvLayer const& cache,
                     AttentionShape const& shape, MatrixView<float> out) {
  KvLayerShape const& kv = cache.shape();
  std::size_t const heads = shape.num_heads / kv.num_kv_heads;  // per KV head
  EM_CHECK(heads * kv.num_kv_heads == shape.num_heads && q.cols == shape.num_heads * kv.key_dim &&
               out.cols == shape.num_heads * kv.value_dim && q.rows == places.positions.size() && out.rows == q.rows,
           "q [" << q.rows << "," << q.cols << "], out [" << out.rows << "," << out.cols << "], " << shape.num_heads
                 << " heads over " << kv.num_kv_heads << " of " << kv.key_dim << " and " << kv.value_dim);
  EM_CHECK(shape.sinks.empty() || shape.sinks.size() == shape.num_heads, shape.sinks.size() << " sinks");
  EM_CHECK(!shape.bias || shape.bias->num_heads() == shape.num_heads, shape.bias->num_heads() << " heads with biases");
  EM_CHECK(places.last.empty() || places.last.size() == q.rows, places.last.size() << " last positions");
  EM_CHECK(std::max(kv.key_dim, kv.value_dim) <= exec.limits().max_head_dim,
           "keys of " << kv.key_dim << ", values of " << kv.value_dim);
  if (q.rows == 0) return;
  if (Device* device = exec.device()) {
    if (places.on_device.most_positions > 0)
      return device->paged_attention(q, places.for_device(), kv, cache.on_device(), shape,
                                     most_positions_before(places.on_device.most_positions, shape.span), out);
    for (std::size_t t = 0; t < q.rows;) {
      auto const [count, most_positions] = tokens_together(places, shape.span, t);
      device->paged_attention(q.row_range(t, count), places.part(t, count).for_device(), kv, cache.on_device(), shape,
                              most_positions, out.row_range(t, count));
      t += count;
    }
    return;
  }
  AttendCut const cut = cut_attention(heads, kv.num_kv_heads, q.rows * kv.num_kv_heads, exec.pool().num_threads());
  auto const attend = kv.dtype == DType::f32    ? exec.table().attend_f32
                      : kv.dtype == DType::bf16 ? exec.table().attend_bf16
                                                : exec.table().attend_int8;
  HeadLayout const layout(kv);
  auto const last = [&](std::size_t t) { return places.last.empty() ? places.positions[t] : places.last[t]; };
  // How many tokens from t on are of one sequence and attend to positions without a gap between theirs: at most
  // cut.tokens.
  auto const tokens_of_part = [&](std::size_t t) {
    std::size_t count = 1;
    while (count < cut.tokens && t + count < q.rows && places.sequences[t + count] == places.sequences[t] &&
           shape.span.first(places.positions[t + count]) <= last(t + count - 1) + 1)
      ++count;
    return count;
  };
  // A part with its tokens.
  struct Part {
    AttendToken tokens[kRowsPerPart];
    AttendPart part{};
  };
  // kv_head, head: the first, the latter of each KV head.
  auto const set = [&](Part& to, std::size_t t, std::size_t count, std::size_t g, std::size_t kv_heads,
                       std::size_t first_head, std::size_t thread) {
    std::size_t const head = g * heads + first_head;
    std::uint32_t const* blocks = places.block_tables.data() + places.table_offsets[places.sequences[t]];
    for (std::size_t i = 0; i < count; ++i) {
      std::uint32_t const position = places.positions[t + i];
      to.tokens[i] = {.first = shape.span.first(position), .last = last(t + i), .position = position};
      EM_CHECK(blocks[to.tokens[i].first / kKvBlockTokens] != kNoKvBlock,
               "position " << to.tokens[i].first << " has been freed");
    }
    to.part = {.q = q.row(t) + head * kv.key_dim,
               .out = out.row(t) + head * kv.value_dim,
               .q_stride = q.stride,
               .out_stride = out.stride,
               .token = to.tokens,
               .tokens = count,
               .kv_heads = kv_heads,
               .heads = std::min(cut.heads, heads - first_head),
               .key_dim = kv.key_dim,
               .value_dim = kv.value_dim,
               .blocks = blocks,
               .kv = cache.blocks().data() + g * layout.all,
               .head_bytes = layout.all,
               .block_bytes = kv.num_kv_heads * layout.all,
               .value_offset = layout.values,
               .scale_offset = layout.scales,
               .values_in_keys = kv.values == KvValues::in_keys,
               .scale = shape.scale,
               .sinks = shape.sinks.empty() ? nullptr : shape.sinks.data() + head,
               .bias = shape.bias ? shape.bias->at_zero(head) : nullptr,
               .bias_stride = shape.bias ? shape.bias->stride() : 0,
               .bias_reach = shape.bias ? shape.bias->reach() : 0,
               .scratch = exec.scratch().attention_of(thread),
               .next = nullptr};
  };
  // Dealt in turn: later tokens of a prompt attend to more, so halves would not take the same time.
  std::size_t const num_threads = exec.pool().num_threads();
  exec.pool().parallel_for(num_threads, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    for (std::size_t share = begin; share < end; ++share) {
      Part parts[2];  // one is run when the one after it is known
      std::size_t own = 0;
      std::size_t num_parts = 0;
      auto const take = [&](std::size_t t, std::size_t count, std::size_t g, std::size_t kv_heads, std::size_t head) {
        if (num_parts++ % num_threads != share) return;
        Part& taken = parts[own % 2];
        set(taken, t, count, g, kv_heads, head, thread);
        if (own++ == 0) return;
        Part& before = parts[own % 2];
        before.part.next = &taken.part;
        attend(before.part);
      };
      for (std::size_t t = 0; t < q.rows;) {
        std::size_t const count = tokens_of_part(t);
        std::size_t const kv_heads = std::clamp<std::size_t>(kRowsPerPart / (cut.heads * count), 1, cut.kv_heads);
        for (std::size_t g = 0; g < kv.num_kv_heads; g += kv_heads)
          for (std::size_t head = 0; head < heads; head += cut.heads)
            take(t, count, g, std::min(kv_heads, kv.num_kv_heads - g), head);
        t += count;
      }
      if (own > 0) attend(parts[(own - 1) % 2].part);
    }
  });
}

}  // namespace expertmesh
