// The GPU's attention against this processor's over the same sequences, and against itself in other batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "common/base/bf16.h"
#include "common/kernels/paged_attention.h"
#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

struct Token {
  std::uint32_t sequence, position;
};

struct Shape {
  std::size_t heads = 1, kv_heads = 1, key_dim = 8, value_dim = 8;
  DType dtype = DType::f32;
  AttentionSpan span{};
  KvValues values = KvValues::separate;
  bool sinks = false;
  std::uint32_t bias_reach = 0;  // 0: no biases
  bool to_the_end = false;       // tokens attend to all of their sequence
};

std::ostream& operator<<(std::ostream& out, Shape const& s) {
  return out << s.heads << " heads over " << s.kv_heads << " of " << s.key_dim << " and " << s.value_dim << ", "
             << name_of(s.dtype) << ", span " << static_cast<int>(s.span.kind) << " of " << s.span.tokens
             << (s.sinks ? ", sinks" : "") << (s.values == KvValues::in_keys ? ", values in keys" : "")
             << ", biases within " << s.bias_reach << (s.to_the_end ? ", to the end" : "");
}

constexpr AttentionSpan window(std::size_t tokens) {
  return {.kind = SpanKind::window, .tokens = tokens};
}
constexpr AttentionSpan chunked(std::size_t tokens) {
  return {.kind = SpanKind::chunked, .tokens = tokens};
}

// Sequences and the tokens that look at them; blocks before what all of a sequence's tokens attend to are freed.
struct Case {
  Shape s;
  std::vector<std::uint32_t> lengths;
  std::vector<Token> tokens;
  std::vector<std::uint32_t> tables, offsets;
  std::size_t num_blocks = 0;
  std::vector<Token> written;  // the rows of k and v
  Matrix<float> q, k, v;       // q: [tokens, Q*DK]
  std::vector<float> sinks;
  std::optional<RelativeBias> bias;

  Case(Shape const& shape, std::vector<std::uint32_t> sequence_lengths, std::vector<Token> looking, unsigned seed = 1)
      : s(shape), lengths(std::move(sequence_lengths)), tokens(std::move(looking)) {
    for (std::uint32_t length : lengths) num_blocks += (length + kKvBlockTokens - 1) / kKvBlockTokens + 1;
    std::vector<std::uint32_t> blocks(num_blocks);
    std::iota(blocks.begin(), blocks.end(), 0U);
    std::ranges::shuffle(blocks, std::mt19937(seed));
    tables.assign(num_blocks, kNoKvBlock);
    for (std::uint32_t b = 0; b < lengths.size(); ++b) {
      std::uint32_t first = lengths[b] - 1;
      for (Token const& t : tokens)
        if (t.sequence == b) first = std::min(first, s.span.first(t.position));
      auto const freed = static_cast<std::uint32_t>(first / kKvBlockTokens);
      tables.push_back(kNoKvBlock);
      offsets.push_back(static_cast<std::uint32_t>(tables.size()) - freed);
      for (auto p = static_cast<std::uint32_t>(freed * kKvBlockTokens); p < lengths[b]; ++p) {
        if (p % kKvBlockTokens == 0) {
          tables.push_back(blocks.back());
          blocks.pop_back();
        }
        written.push_back({b, p});
      }
    }
    q = rows_of(tokens, s.heads * s.key_dim, 1);
    for (std::size_t i = 0; i < q.view().rows * q.view().cols; ++i) q.view().data[i] *= 4;  // a sharper softmax
    k = rows_of(written, s.kv_heads * s.key_dim, 2);
    v = rows_of(written, s.values == KvValues::in_keys ? 0 : s.kv_heads * s.value_dim, 3);
    auto const numbers = random_matrix(1, s.heads, 4);
    for (std::size_t h = 0; s.sinks && h < s.heads; ++h) sinks.push_back(3 * numbers.view().data[h]);
    if (s.bias_reach == 0) return;
    bias.emplace(s.heads, s.bias_reach);
    for (std::size_t h = 0; h < s.heads; ++h)
      for (std::int64_t d = -std::int64_t{s.bias_reach}; d <= s.bias_reach; ++d)
        bias->set(h, d, 2 * std::sin(static_cast<float>(h * 31) + 1.7F * static_cast<float>(d)));
  }
  // A token's row depends on the token alone.
  static Matrix<float> rows_of(std::vector<Token> const& of, std::size_t columns, std::uint64_t seed) {
    Matrix<float> out(of.size(), columns);
    for (std::size_t t = 0; t < of.size(); ++t) {
      auto const row = random_matrix(1, columns, seed * 100000 + of[t].sequence * 10000 + of[t].position);
      std::copy_n(row.view().data, columns, out.view().row(t));
    }
    return out;
  }
  [[nodiscard]] KvLayerShape kv() const {
    return {.num_blocks = num_blocks,
            .num_kv_heads = s.kv_heads,
            .key_dim = s.key_dim,
            .value_dim = s.value_dim,
            .values = s.values,
            .dtype = s.dtype};
  }
};

// A case's keys and values on the device of `exec`, or on the host: there the numbers that the device's cache has, in
// fp32, so that both multiply the same in fp32.
class Attention {
 public:
  Attention(Exec const& exec, Case const& c)
      : exec_(exec),
        device_(exec.device()),
        c_(c),
        cache_(device_ ? c.kv() : in_fp32(c.kv()), device_),
        tables_(std::span(c.tables), device_),
        offsets_(std::span(c.offsets), device_),
        sinks_(std::span(c.sinks), device_) {
    if (c.bias && device_) bias_.emplace(c.bias->copy_to(*device_));
    if (device_) {
      std::size_t const of_one = c.num_blocks * c.s.kv_heads * kKvBlockTokens * size_of(c.s.dtype);
      DeviceKv const kv = cache_.on_device();
      fill_with_nan(kv.keys, of_one * c.s.key_dim);
      if (c.s.values == KvValues::separate) fill_with_nan(kv.values, of_one * c.s.value_dim);
    } else {
      std::ranges::fill(cache_.blocks(), std::byte{0xff});
    }
    Places const places(*this, c.written);
    kv_write(exec_, as_cached(c.k.view()).view(), as_cached(c.v.view()).view(), places.of, cache_);
  }

  // All tokens in one call, or those of a range.
  [[nodiscard]] Matrix<float> run() { return run(0, c_.tokens.size()); }
  [[nodiscard]] Matrix<float> run(std::size_t begin, std::size_t count) {
    return run(begin, count, [&](MatrixView<float const> q, TokenPlaces const& places, MatrixView<float> out) {
      paged_attention(exec_, q, places, cache_, shape(), out);
    });
  }
  // As the device's op is called where longer sequences are in the batch.
  [[nodiscard]] Matrix<float> run_among(std::size_t most_positions) {
    return run(0, c_.tokens.size(), [&](MatrixView<float const> q, TokenPlaces const& places, MatrixView<float> out) {
      device_->paged_attention(q, places.for_device(), c_.kv(), cache_.on_device(), shape(), most_positions, out);
    });
  }

  [[nodiscard]] std::vector<std::byte> keys() { return bytes(cache_.on_device().keys, c_.s.key_dim); }
  [[nodiscard]] std::vector<std::byte> values() { return bytes(cache_.on_device().values, c_.s.value_dim); }

 private:
  struct Places {
    Places(Attention const& a, std::span<Token const> tokens) {
      for (Token const& t : tokens) {
        positions.push_back(t.position);
        sequences.push_back(t.sequence);
        if (a.c_.s.to_the_end) last.push_back(a.c_.lengths[t.sequence] - 1);
      }
      of = {.positions = positions,
            .sequences = sequences,
            .block_tables = a.c_.tables,
            .table_offsets = a.c_.offsets,
            .last = last};
      if (!a.device_) return;
      for (auto const* numbers : {&positions, &sequences, &last})
        there.emplace_back(std::span<std::uint32_t const>(*numbers), a.device_);
      of.on_device = {.positions = there[0].data(),
                      .sequences = there[1].data(),
                      .block_tables = a.tables_.data(),
                      .table_offsets = a.offsets_.data(),
                      .last = there[2].data()};
    }
    std::vector<std::uint32_t> positions, sequences, last;
    std::vector<AlignedBuffer<std::uint32_t>> there;
    TokenPlaces of;
  };

  [[nodiscard]] AttentionShape shape() const {
    return {.num_heads = c_.s.heads,
            .scale = 1.0F / std::sqrt(static_cast<float>(c_.s.key_dim)),
            .span = c_.s.span,
            .sinks = sinks_.span(),
            .bias = bias_ ? &*bias_ : (c_.bias ? &*c_.bias : nullptr)};
  }
  template <class Op>
  Matrix<float> run(std::size_t begin, std::size_t count, Op const& op) {
    Matrix<float> const q = there(c_.q.view().row_range(begin, count));
    Matrix<float> out(count, c_.s.heads * c_.s.value_dim, device_);
    Places const places(*this, std::span(c_.tokens).subspan(begin, count));
    op(q.view(), places.of, out.view());
    if (!device_) return out;
    Matrix<float> here(count, out.view().cols);
    device_->download(here.view().data, out.view().data, here.size_bytes());
    return here;
  }
  // A copy where the ops want it.
  [[nodiscard]] Matrix<float> there(MatrixView<float const> x) const {
    Matrix<float> out(x.rows, x.cols, device_);
    if (out.size_bytes() == 0) return out;
    if (device_)
      device_->upload(out.view().data, x.data, out.size_bytes());
    else
      std::memcpy(out.view().data, x.data, out.size_bytes());
    return out;
  }
  [[nodiscard]] static KvLayerShape in_fp32(KvLayerShape shape) {
    shape.dtype = DType::f32;
    return shape;
  }
  [[nodiscard]] Matrix<float> as_cached(MatrixView<float const> x) const {
    Matrix<float> out = there(x);
    if (!device_ && c_.s.dtype == DType::bf16)
      for (std::size_t i = 0; i < x.rows * x.cols; ++i) out.view().data[i] = to_float(to_bf16(x.data[i]));
    return out;
  }
  void fill_with_nan(std::byte* memory, std::size_t bytes) const {
    std::vector<std::byte> const ones(bytes, std::byte{0xff});
    device_->upload(memory, ones.data(), ones.size());
  }
  [[nodiscard]] std::vector<std::byte> bytes(std::byte const* memory, std::size_t dim) const {
    std::vector<std::byte> out(c_.num_blocks * c_.s.kv_heads * dim * kKvBlockTokens * size_of(c_.s.dtype));
    device_->download(out.data(), memory, out.size());
    return out;
  }

  Exec const& exec_;
  Device* device_;
  Case const& c_;
  KvLayer cache_;
  AlignedBuffer<std::uint32_t> tables_, offsets_;
  AlignedBuffer<float> sinks_;
  std::optional<RelativeBias> bias_;
};

class AttentionDeviceTest : public EachDevice {
 protected:
  // Both add up means of numbers in (-1, 1) in fp32. Returns how far they are apart.
  double expect_like_the_host(Case const& c) {
    Matrix<float> const expected = Attention(processor_, c).run();
    Matrix<float> const got = Attention(gpu_, c).run();
    std::size_t wrong = 0;
    double furthest = 0;
    for (std::size_t t = 0; t < expected.view().rows; ++t)
      for (std::size_t i = 0; i < expected.view().cols; ++i) {
        double const off = std::abs(static_cast<double>(got.view().row(t)[i]) - expected.view().row(t)[i]);
        wrong += !(off <= 1e-5);
        furthest = std::max(furthest, off);
      }
    EXPECT_EQ(wrong, 0U) << c.s << ", off by " << furthest;
    return furthest;
  }

  ThreadPool pool_{2};
  ExecLimits limits_{.max_rows = 1, .max_columns = 1, .max_head_dim = 600, .max_heads = 128, .max_positions = 4096};
  Exec processor_{best_isa(), pool_, limits_};
  Exec gpu_{best_isa(), pool_, limits_, device_.get()};
};
EM_FOR_EACH_DEVICE(AttentionDeviceTest);

// On a device nobody would see it.
TEST_P(AttentionDeviceTest, ATokenWithoutABlockIsFoundBeforeItsKeysAreWritten) {
  Case c({}, {20}, {{0, 19}});
  c.tables.back() = kNoKvBlock;  // of positions 16 to 19
  EXPECT_DEATH(Attention(gpu_, c), "no block for position 16");
}

std::vector<Token> last_tokens(std::vector<std::uint32_t> const& lengths) {
  std::vector<Token> out;
  for (std::uint32_t b = 0; b < lengths.size(); ++b) out.push_back({b, lengths[b] - 1});
  return out;
}
std::vector<Token> tokens_of(std::uint32_t sequence, std::vector<std::uint32_t> const& positions) {
  std::vector<Token> out;
  for (std::uint32_t p : positions) out.push_back({sequence, p});
  return out;
}

std::vector<std::uint32_t> const kEdges = {1, 15, 16, 17, 255, 256, 257, 600};

TEST_P(AttentionDeviceTest, DecodesLikeTheHostAtEveryEdgeOfBlocksAndTiles) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    expect_like_the_host(
        {{.heads = 4, .kv_heads = 2, .key_dim = 64, .value_dim = 64, .dtype = dtype}, kEdges, last_tokens(kEdges)});
    expect_like_the_host(
        {{.heads = 3, .key_dim = 20, .value_dim = 20, .dtype = dtype, .sinks = true}, kEdges, last_tokens(kEdges)});
  }
}

TEST_P(AttentionDeviceTest, TakesAnyHeadsAndDimensions) {
  std::vector<std::uint32_t> const lengths = {17, 270};
  for (DType dtype : {DType::f32, DType::bf16})
    for (auto const& [heads, kv_heads, dk, dv] : {std::array<std::size_t, 4>{1, 1, 1, 1},
                                                  {2, 2, 3, 3},
                                                  {3, 1, 20, 20},
                                                  {4, 2, 72, 72},
                                                  {5, 1, 8, 24},
                                                  {8, 1, 128, 128},
                                                  {6, 3, 24, 5},
                                                  {9, 1, 16, 16},  // two blocks of threads, of five heads and four
                                                  {10, 1, 192, 128},
                                                  {33, 1, 8, 40},
                                                  {2, 1, 300, 300},  // more columns than threads
                                                  {128, 1, 7, 3}})
      expect_like_the_host(
          {{.heads = heads, .kv_heads = kv_heads, .key_dim = dk, .value_dim = dv, .dtype = dtype, .sinks = true},
           lengths,
           last_tokens(lengths)});
}

// So many heads and tiles that one token alone leaves more than what a launch has room for.
TEST_P(AttentionDeviceTest, TakesTheLongestTokenOfItsLimits) {
  std::vector<std::uint32_t> const lengths = {4096, 3000, 5};
  expect_like_the_host({{.heads = 128, .kv_heads = 1, .key_dim = 8, .value_dim = 4}, lengths, last_tokens(lengths)});
}

TEST_P(AttentionDeviceTest, FindsValuesInKeys) {
  std::vector<std::uint32_t> const lengths = {260, 19};
  for (DType dtype : {DType::f32, DType::bf16})
    for (auto const& [heads, kv_heads, dk, dv] :
         {std::array<std::size_t, 4>{16, 1, 576, 512}, {5, 1, 40, 33}, {4, 2, 72, 64}, {1, 1, 1, 1}})
      expect_like_the_host({{.heads = heads,
                             .kv_heads = kv_heads,
                             .key_dim = dk,
                             .value_dim = dv,
                             .dtype = dtype,
                             .values = KvValues::in_keys},
                            lengths,
                            last_tokens(lengths)});
}

TEST_P(AttentionDeviceTest, KeepsToItsSpanWhereEarlierBlocksAreFreed) {
  for (AttentionSpan const& span : {window(1), window(5), window(16), window(23), window(256), window(300),
                                    window(5000), chunked(1), chunked(16), chunked(23), chunked(256), chunked(300)}) {
    Shape const shape{
        .heads = 4, .kv_heads = 2, .key_dim = 8, .value_dim = 16, .dtype = DType::bf16, .span = span, .sinks = true};
    expect_like_the_host({shape, kEdges, last_tokens(kEdges)});
  }
}

TEST_P(AttentionDeviceTest, TakesManyTokensOfASequenceAtOnce) {
  for (AttentionSpan const& span : {AttentionSpan{}, window(20), chunked(20)}) {
    Shape const shape{.heads = 2, .key_dim = 12, .value_dim = 12, .span = span};
    std::vector<Token> tokens = tokens_of(0, {250, 251, 252, 253, 254, 255, 256, 257, 258, 259, 260, 261, 262});
    for (Token const& t : tokens_of(1, {0, 1, 2, 14, 15, 16, 17})) tokens.push_back(t);
    expect_like_the_host({shape, {263, 18}, tokens});
  }
}

TEST_P(AttentionDeviceTest, AddsBiasesByDistanceAndLooksAhead) {
  for (bool const to_the_end : {false, true})
    for (std::uint32_t const reach : {1U, 16U, 40U, 700U}) {
      Shape const shape{
          .heads = 6, .kv_heads = 3, .key_dim = 12, .value_dim = 12, .bias_reach = reach, .to_the_end = to_the_end};
      expect_like_the_host({shape, {290, 3}, {{0, 0}, {0, 1}, {0, 17}, {0, 255}, {0, 256}, {0, 289}, {1, 1}}});
    }
}

TEST_P(AttentionDeviceTest, AcrossItLooksAtAnInputShorterThanItsPosition) {
  Shape const shape{.heads = 2, .key_dim = 8, .value_dim = 8, .to_the_end = true};
  expect_like_the_host({shape, {3, 270}, {{0, 40}, {0, 900}, {1, 2}, {1, 300}}});
}

TEST_P(AttentionDeviceTest, ATokensBitsAreItsSequencesAlone) {
  std::vector<std::uint32_t> const lengths = {600, 17, 256, 300};
  for (Shape const& shape :
       {Shape{.heads = 6, .kv_heads = 2, .key_dim = 40, .value_dim = 40, .dtype = DType::bf16, .sinks = true},
        Shape{.heads = 3, .key_dim = 24, .value_dim = 5, .span = window(270)},
        Shape{.heads = 9, .key_dim = 24, .value_dim = 24, .span = chunked(50), .bias_reach = 20},
        Shape{.heads = 2, .key_dim = 24, .value_dim = 16, .dtype = DType::bf16, .values = KvValues::in_keys}}) {
    std::vector<Token> const tokens = last_tokens(lengths);
    Case const c(shape, lengths, tokens);
    Case const elsewhere(shape, lengths, tokens, 2);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    EXPECT_TRUE(same_bits(Attention(gpu_, elsewhere).run().view(), together.view())) << shape;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
      std::vector<std::uint32_t> alone(t + 1, 1);  // what is written is numbered by sequences
      alone[t] = lengths[t];
      Case const one(shape, alone, {tokens[t]});
      EXPECT_TRUE(same_bits(Attention(gpu_, one).run().view(), together.view().row_range(t, 1)))
          << shape << ", token " << t << " alone";
    }
  }
}

// Room for fewer tokens in a launch.
TEST_P(AttentionDeviceTest, BitsDoNotDependOnTheLongestSequence) {
  std::vector<std::uint32_t> const lengths = {280, 17, 5, 33, 100};
  Case const c({.heads = 16, .kv_heads = 2, .key_dim = 8, .value_dim = 600}, lengths, last_tokens(lengths));
  Attention gpu(gpu_, c);
  Matrix<float> const expected = gpu.run();
  for (std::size_t const most : {288, 1000, 4096}) EXPECT_TRUE(same_bits(gpu.run_among(most).view(), expected.view()));
}

// Which go to the device in several calls.
TEST_P(AttentionDeviceTest, TakesShortAndLongSequencesTogether) {
  std::vector<std::uint32_t> lengths(60, 5);
  for (std::uint32_t b = 0; b < lengths.size(); ++b) lengths[b] += b;
  lengths[40] = 4000;
  lengths[41] = 3000;
  Case const c({.heads = 2, .kv_heads = 1, .key_dim = 8, .value_dim = 8}, lengths, last_tokens(lengths));
  expect_like_the_host(c);
  Attention gpu(gpu_, c);
  Matrix<float> const together = gpu.run();
  for (std::size_t t = 38; t < 44; ++t)
    EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << "token " << t;
}

TEST_P(AttentionDeviceTest, ASinkOfMinusInfinityIsNoneAndANaNIsNotHidden) {
  Shape shape{.heads = 2, .kv_heads = 2, .key_dim = 8, .value_dim = 8};
  Case const none(shape, {300}, {{0, 299}, {0, 2}});
  Matrix<float> const expected = Attention(gpu_, none).run();
  shape.sinks = true;
  Case sinks(shape, {300}, {{0, 299}, {0, 2}});
  EXPECT_FALSE(same_bits(Attention(gpu_, sinks).run().view(), expected.view()));
  sinks.sinks.assign(2, -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(same_bits(Attention(gpu_, sinks).run().view(), expected.view()));

  shape.sinks = false;
  Case broken(shape, {300}, {{0, 299}, {0, 2}});
  broken.k.view().row(3)[0] = std::numeric_limits<float>::quiet_NaN();  // of head 0
  Matrix<float> const got = Attention(gpu_, broken).run();
  EXPECT_TRUE(std::isnan(got.view().row(0)[0]));
  EXPECT_EQ(got.view().row(0)[8], expected.view().row(0)[8]);
  EXPECT_EQ(got.view().row(1)[0], expected.view().row(1)[0]);
}

// ---- on tensor cores: caches of bfloat16 with dimensions of whole sixteens
std::vector<Token> prompt(std::uint32_t sequence, std::uint32_t begin, std::uint32_t end) {
  std::vector<Token> out;
  for (std::uint32_t p = begin; p < end; ++p) out.push_back({sequence, p});
  return out;
}
Shape rows_shape(std::size_t heads, std::size_t kv_heads, std::size_t key_dim, std::size_t value_dim) {
  return {.heads = heads, .kv_heads = kv_heads, .key_dim = key_dim, .value_dim = value_dim, .dtype = DType::bf16};
}

// Queries and weights have 16 bits: 2^-17 of a weighted mean of numbers below 1, which is 7.6e-6, and as much again of
// each score, whose errors cancel. Both of float32: the processor's.
TEST_P(AttentionDeviceTest, RowsAreWithinTheirErrorOfTheHost) {
  double furthest = 0;
  for (std::size_t const dim : {16, 64, 80, 96, 128, 192, 256})
    furthest = std::max(furthest, expect_like_the_host({rows_shape(4, 1, dim, dim), {300}, prompt(0, 240, 264)}));
  RecordProperty("furthest_e9", std::to_string(std::lround(furthest * 1e9)));
}

TEST_P(AttentionDeviceTest, RowsTakeGroupsOfAnySize) {
  for (std::size_t const group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 70}) {
    Shape shape = rows_shape(group, 1, 24, 32);
    shape.sinks = true;
    Case const c(shape, {70, 18, 270},
                 {{0, 0}, {0, 1}, {0, 40}, {0, 69}, {1, 16}, {1, 17}, {2, 255}, {2, 256}, {2, 269}});
    expect_like_the_host(c);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    for (std::size_t t = 0; t < c.tokens.size(); ++t)
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
  }
}

TEST_P(AttentionDeviceTest, RowsTakeLatentsOfManyHeads) {
  for (std::size_t const heads : {16, 33, 128}) {
    Shape shape = rows_shape(heads, 1, 576, 512);
    shape.values = KvValues::in_keys;
    Case const c(shape, {20, 260}, {{0, 18}, {0, 19}, {1, 259}});
    expect_like_the_host(c);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    for (std::size_t t = 0; t < c.tokens.size(); ++t)
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
  }
}

// All of a prompt at once, in chunks, and its tokens one by one, as a sequence decodes.
TEST_P(AttentionDeviceTest, APromptHasTheSameBitsInChunksOfAnySize) {
  constexpr std::uint32_t kLength = 290;
  for (AttentionSpan const& span : {AttentionSpan{}, window(23), window(270), chunked(50)}) {
    if (test::kFewCases && span.kind != SpanKind::window) continue;
    Shape shape = rows_shape(4, 1, 16, 16);
    shape.span = span;
    shape.sinks = true;
    Case const c(shape, {kLength}, prompt(0, 0, kLength));
    expect_like_the_host(c);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    std::size_t const chunk = span.kind == SpanKind::full ? 17 : 100;
    for (std::size_t t = 0; t < kLength; t += chunk) {
      std::size_t const count = std::min(chunk, kLength - t);
      ASSERT_TRUE(same_bits(gpu.run(t, count).view(), together.view().row_range(t, count)))
          << shape << ", tokens from " << t << " on, " << count;
    }
    for (std::size_t t : {0, 15, 16, 50, 255, 256, 270, 289})
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
  }
}

// A chunk of a prompt beside sequences that decode; what is alone in a call is cut into blocks in another way.
TEST_P(AttentionDeviceTest, APromptsBitsAreTheSameBesideSequencesThatDecode) {
  std::vector<Token> tokens = {{0, 16}, {1, 299}, {2, 0}};
  for (Token const& t : prompt(3, 230, 280)) tokens.push_back(t);
  tokens.push_back({4, 255});
  for (auto const& [heads, dim] : {std::array<std::size_t, 2>{4, 64}, {3, 160}, {1, 272}}) {
    Shape const shape = rows_shape(2 * heads, 2, dim, dim);
    Case const c(shape, {17, 300, 1, 280, 256}, tokens);
    expect_like_the_host(c);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    EXPECT_TRUE(same_bits(gpu.run(3, 50).view(), together.view().row_range(3, 50))) << shape;
    for (std::size_t t : {0U, 1U, 2U, 3U, 28U, 29U, 52U, 53U})
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
  }
}

// Two stripes of tiles: where there are many blocks, each walks one; else each has a tile, and they are folded later.
TEST_P(AttentionDeviceTest, RowsOfManyTilesHaveTheSameBitsHoweverTheyAreFolded) {
  for (AttentionSpan const& span : {AttentionSpan{}, window(600), chunked(700)}) {
    if (test::kFewCases && span.kind != SpanKind::window) continue;
    Shape shape = rows_shape(16, 2, 16, 16);
    shape.span = span;
    Case const c(shape, {2500}, prompt(0, 2040, 2060));
    expect_like_the_host(c);
    Attention gpu(gpu_, c);
    Matrix<float> const together = gpu.run();
    for (std::size_t t : {0, 7, 8, 19})
      EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << shape << ", token " << t;
    EXPECT_TRUE(same_bits(gpu.run_among(4096).view(), together.view())) << shape;  // in launches of fewer tokens
  }
}

TEST_P(AttentionDeviceTest, RowsLookAheadWhereTokensLookToTheEnd) {
  Shape shape = rows_shape(6, 3, 16, 32);
  shape.to_the_end = true;
  expect_like_the_host({shape, {290, 3}, {{0, 0}, {0, 1}, {0, 17}, {0, 255}, {0, 256}, {0, 289}, {1, 1}}});
}

// Tokens that do not follow one another, behind each other: what lies between them is nobody's.
TEST_P(AttentionDeviceTest, RowsOfASequenceNeedNotBeNeighbours) {
  Shape shape = rows_shape(4, 1, 16, 16);
  shape.span = window(20);
  Case const c(shape, {1100}, tokens_of(0, {1099, 30, 700, 25, 699}));
  expect_like_the_host(c);
  Attention gpu(gpu_, c);
  Matrix<float> const together = gpu.run();
  for (std::size_t t = 0; t < c.tokens.size(); ++t)
    EXPECT_TRUE(same_bits(gpu.run(t, 1).view(), together.view().row_range(t, 1))) << "token " << t;
}

// Weights of zero times what is infinite would be NaN.
TEST_P(AttentionDeviceTest, AnInfiniteValueIsNotSeenByTokensBeforeIt) {
  for (std::uint32_t const broken : {40U, 258U}) {
    Shape const shape = rows_shape(4, 2, 32, 32);
    std::vector<Token> const tokens = prompt(0, broken - 20, broken + 10);
    Case c(shape, {broken + 10}, tokens);
    Matrix<float> const expected = Attention(gpu_, c).run();
    c.v.view().row(broken)[3] = std::numeric_limits<float>::infinity();  // KV head 0
    c.v.view().row(broken)[4] = std::numeric_limits<float>::quiet_NaN();
    c.k.view().row(broken)[32] = std::numeric_limits<float>::quiet_NaN();  // KV head 1
    Matrix<float> const got = Attention(gpu_, c).run();
    EXPECT_TRUE(same_bits(got.view().row_range(0, 20), expected.view().row_range(0, 20)));
    for (std::size_t t = 20; t < tokens.size(); ++t)
      for (std::size_t i = 0; i < 4 * 32; ++i)
        EXPECT_EQ(std::isfinite(got.view().row(t)[i]), i < 64 && i % 32 != 3 && i % 32 != 4) << t << ", " << i;
  }
}

TEST_P(AttentionDeviceTest, WritesKeysAndValuesWhereTheirPositionsLie) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (KvValues values : {KvValues::separate, KvValues::in_keys}) {
      Shape const shape{.heads = 3, .kv_heads = 3, .key_dim = 7, .value_dim = 5, .dtype = dtype, .values = values};
      Case c(shape, {20, 33}, {{0, 19}, {1, 32}});
      c.k.view().row(1)[2] = 1.00390625F;  // between two bf16, the even one is below
      c.k.view().row(1)[3] = std::numeric_limits<float>::infinity();
      Attention gpu(gpu_, c);
      auto const check = [&](std::vector<std::byte> const& got, Matrix<float> const& rows, std::size_t dim) {
        std::vector<std::byte> expected(got.size(), std::byte{0xff});
        for (std::size_t r = 0; r < c.written.size(); ++r)
          for (std::size_t g = 0; g < shape.kv_heads; ++g)
            for (std::size_t i = 0; i < dim; ++i) {
              std::uint32_t const position = c.written[r].position;
              std::size_t const block = c.tables[c.offsets[c.written[r].sequence] + position / kKvBlockTokens];
              std::size_t const at =
                  ((block * shape.kv_heads + g) * kKvBlockTokens + position % kKvBlockTokens) * dim + i;
              float const x = rows.view().row(r)[g * dim + i];
              if (dtype == DType::f32) {
                std::memcpy(expected.data() + at * sizeof x, &x, sizeof x);
              } else {
                bf16 const rounded = to_bf16(x);
                std::memcpy(expected.data() + at * sizeof rounded, &rounded, sizeof rounded);
              }
            }
        EXPECT_EQ(got, expected) << shape;
      };
      check(gpu.keys(), c.k, shape.key_dim);
      if (values == KvValues::separate) check(gpu.values(), c.v, shape.value_dim);
    }
}

}  // namespace
}  // namespace expertmesh
