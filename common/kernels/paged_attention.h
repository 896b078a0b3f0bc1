// Attention over a paged KV cache, and the cache itself (one layer's worth). The byte layout is private to this
// backend.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/base/aligned_buffer.h"
#include "common/config/attention_span.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/tensor/dtype.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

constexpr std::size_t kKvBlockTokens = 16;

// Where a position's values lie.
enum class KvValues : std::uint8_t {
  separate,
  in_keys,  // they are the first value_dim elements of its key: latent attention
};

struct KvLayerShape {
  std::size_t num_blocks = 0;
  std::size_t num_kv_heads = 0;  // G
  std::size_t key_dim = 0;       // DK
  std::size_t value_dim = 0;     // DV
  KvValues values = KvValues::separate;
  // f32; bf16, rounded to nearest even when written; i8, on the host alone: of each position and KV head the key is
  // whole numbers of -127 … 127 times one scale, and so is the value. Where values lie in the keys, they have the one
  // scale, and what the key has behind them the other.
  DType dtype = DType::f32;
};

class KvLayer {
 public:
  // device: whose attention reads it; null: this processor's.
  explicit KvLayer(KvLayerShape shape, DeviceMemory* device = nullptr);
  static std::size_t bytes_per_block(KvLayerShape const& shape);
  [[nodiscard]] KvLayerShape const& shape() const { return shape_; }
  // Of the host: bytes_per_block() for each block, as AttendPart has them.
  [[nodiscard]] std::span<std::byte> blocks() { return blocks_.span(); }
  [[nodiscard]] std::span<std::byte const> blocks() const { return blocks_.span(); }
  // Of the host: see touch_pages().
  bool touch(ThreadPlan const& threads, std::stop_token const& stop) {
    return touch_pages(blocks_.span(), threads, stop);
  }
  // For the device to read; only kv_write() writes there.
  [[nodiscard]] DeviceKv on_device() const {
    return {.keys = const_cast<std::byte*>(keys_.data()), .values = const_cast<std::byte*>(values_.data())};
  }

 private:
  KvLayerShape shape_;
  AlignedBuffer<std::byte> blocks_;  // [num_blocks][G]: what a head has of a block lies side by side
  // On a device as DeviceKv has them.
  AlignedBuffer<std::byte> keys_;
  AlignedBuffer<std::byte> values_;
};

// Stands in block tables for what is in no block.
constexpr std::uint32_t kNoKvBlock = 0xffffffff;

// Which token stands where. Position p of sequence b lies in block_tables[table_offsets[b] + p/16], slot p%16: for
// every p that one of the tokens attends to. Where layers see a part of the sequence only (a window), the entries of
// earlier blocks are not there: the nearest such place has kNoKvBlock, others whatever another sequence left.
struct TokenPlaces {
  std::span<std::uint32_t const> positions;      // [T]
  std::span<std::uint32_t const> sequences;      // [T] index into table_offsets
  std::span<std::uint32_t const> block_tables;   // concatenated
  std::span<std::uint32_t const> table_offsets;  // [B]
  // [T] the last position that each token attends to, where that is not its own: in an encoder all look at its whole
  // input, and so does a decoder that looks across. Empty: its own.
  std::span<std::uint32_t const> last{};
  // The same arrays in the memory of the device, if it is one that attends.
  struct OnDevice {
    std::uint32_t const* positions = nullptr;
    std::uint32_t const* sequences = nullptr;
    std::uint32_t const* block_tables = nullptr;
    std::uint32_t const* table_offsets = nullptr;
    std::uint32_t const* last = nullptr;
    // No token attends to positions from here on: the device then makes room for so many, in one call. 0: room for what
    // `positions` ask for.
    std::size_t most_positions = 0;
  } on_device{};

  // Of tokens [begin, begin + count).
  [[nodiscard]] TokenPlaces part(std::size_t begin, std::size_t count) const;
  // With spans of the arrays there, for a Device's ops.
  [[nodiscard]] TokenPlaces for_device() const;
};

// Broken invariant where a token's own position is in none of the first num_blocks blocks.
void check_blocks(TokenPlaces const& places, std::size_t num_blocks);

// Stores k [T,G*DK] and v [T,G*DV] at the tokens' places. v has no columns where the values are in the keys.
void kv_write(Exec const& exec, MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
              KvLayer& cache);

// A number for each head and distance, added to the scores: the distance is the key's position less the query's, held
// within +-reach.
class RelativeBias {
 public:
  RelativeBias(std::size_t num_heads, std::uint32_t reach);
  [[nodiscard]] std::size_t num_heads() const { return values_.view().rows; }
  [[nodiscard]] std::uint32_t reach() const { return reach_; }
  void set(std::size_t head, std::int64_t distance, float value);
  // The same numbers in a device's memory; to be set no more.
  [[nodiscard]] RelativeBias copy_to(DeviceMemory& device) const;
  [[nodiscard]] std::size_t stride() const { return values_.view().cols; }  // numbers of a head
  [[nodiscard]] float const* at_zero(std::size_t head) const;               // its number for distance 0
  [[nodiscard]] std::size_t size_bytes() const { return values_.size_bytes(); }

 private:
  std::uint32_t reach_;
  Matrix<float> values_;  // [Q][15 + 2 reach + 1 + 15]: the outermost ones again, so that a block is one vector
};

struct AttentionShape {
  std::size_t num_heads = 0;       // Q, a multiple of G; head h reads KV head h / (Q/G)
  float scale = 1.0F;              // multiplies q.k
  AttentionSpan span{};            // token at p attends to span.first(p)… its last
  std::span<float const> sinks{};  // [Q] logits of keys without a value, one in each head's softmax; or none
  RelativeBias const* bias = nullptr;
};

// q: [T,Q*DK], out: [T,Q*DV]. The positions attended to are all written already. Online softmax over tiles aligned to
// absolute positions: out[t] depends on its sequence alone, bit for bit.
void paged_attention(Exec const& exec, MatrixView<float const> q, TokenPlaces const& places, KvLayer const& cache,
                     AttentionShape const& shape, MatrixView<float> out);

}  // namespace expertmesh
