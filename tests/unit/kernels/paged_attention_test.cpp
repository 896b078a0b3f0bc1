#include "common/kernels/paged_attention.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

class PagedAttentionTest : public EachIsa {};
EM_FOR_EACH_ISA(PagedAttentionTest);

constexpr std::size_t kBlocks = 40;

// Which positions of which sequences a call covers, over block tables fixed beforehand.
struct Tokens {
  std::vector<std::uint32_t> positions, sequences;
  void add(std::uint32_t sequence, std::uint32_t begin, std::uint32_t end) {
    for (std::uint32_t p = begin; p < end; ++p) {
      positions.push_back(p);
      sequences.push_back(sequence);
    }
  }
};

struct Shape {
  std::size_t heads, kv_heads, key_dim, value_dim;
  DType dtype = DType::f32;
  AttentionSpan span{};
  bool sinks = false;
  KvValues values = KvValues::separate;
};

std::ostream& operator<<(std::ostream& out, Shape const& s) {
  return out << s.heads << " heads over " << s.kv_heads << " of " << s.key_dim << " and " << s.value_dim << ", "
             << name_of(s.dtype) << ", span " << static_cast<int>(s.span.kind) << " of " << s.span.tokens
             << (s.sinks ? ", sinks" : "") << (s.values == KvValues::in_keys ? ", values in keys" : "");
}

// Two sequences in scattered blocks. Sequence 0 has length[0] tokens with the rows 0… of q, k, v; sequence 1 follows.
struct Case {
  std::array<std::uint32_t, 2> length;
  Shape s;
  std::vector<std::uint32_t> tables = {31, 2, 17, 8, 25, 11, 6, 39, 20, 14, 27, 33, 5, /* sequence 1: */ 3, 30, 0};
  std::vector<std::uint32_t> offsets = {0, 13, 16};
  Matrix<float> q, k, v;
  std::vector<float> sinks;

  explicit Case(Shape const& shape, std::uint32_t first_length = 70)
      : length{first_length, 37},
        s(shape),
        q(random_matrix(length[0] + length[1], s.heads * s.key_dim, 1)),
        k(random_matrix(length[0] + length[1], s.kv_heads * s.key_dim, 2)),
        v(random_matrix(length[0] + length[1], s.values == KvValues::in_keys ? 0 : s.kv_heads * s.value_dim, 3)) {
    for (std::size_t i = 0; i < q.view().rows * q.view().cols; ++i) q.view().data[i] *= 4;  // a sharper softmax
    if (!s.sinks) return;
    auto const logits = random_matrix(1, s.heads, 4);
    for (std::size_t h = 0; h < s.heads; ++h) sinks.push_back(3 * logits.view().data[h]);
  }
  [[nodiscard]] std::size_t row_of(std::uint32_t sequence, std::uint32_t position) const {
    return (sequence == 0 ? 0 : length[0]) + position;
  }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(s.key_dim)); }

  // A cache in which whatever was never written is NaN.
  [[nodiscard]] KvLayer empty_cache() const {
    KvLayer cache({.num_blocks = kBlocks,
                   .num_kv_heads = s.kv_heads,
                   .key_dim = s.key_dim,
                   .value_dim = s.value_dim,
                   .values = s.values,
                   .dtype = s.dtype});
    std::memset(cache.blocks().data(), 0xff, cache.blocks().size());
    return cache;
  }

  // Writes and attends one call's tokens; their outputs land in `out` at the rows of row_of.
  void step(Exec const& exec, KvLayer& cache, Tokens const& tokens, MatrixView<float> out) const {
    std::size_t const t = tokens.positions.size();
    Matrix<float> qs(t, q.view().cols), ks(t, k.view().cols), vs(t, v.view().cols), outs(t, out.cols);
    auto const row = [&](std::size_t i) { return row_of(tokens.sequences[i], tokens.positions[i]); };
    for (std::size_t i = 0; i < t; ++i) {
      std::copy_n(q.view().row(row(i)), qs.view().cols, qs.view().row(i));
      std::copy_n(k.view().row(row(i)), ks.view().cols, ks.view().row(i));
      std::copy_n(v.view().row(row(i)), vs.view().cols, vs.view().row(i));
    }
    TokenPlaces const places{
        .positions = tokens.positions, .sequences = tokens.sequences, .block_tables = tables, .table_offsets = offsets};
    kv_write(exec, ks.view(), vs.view(), places, cache);
    paged_attention(exec, qs.view(), places, cache,
                    {.num_heads = s.heads, .scale = scale(), .span = s.span, .sinks = sinks}, outs.view());
    for (std::size_t i = 0; i < t; ++i) std::copy_n(outs.view().row(i), out.cols, out.row(row(i)));
  }

  // All tokens in chunks of `chunk` positions per sequence, both sequences in each call.
  [[nodiscard]] Matrix<float> run(Exec const& exec, std::uint32_t chunk) const {
    Matrix<float> out(q.view().rows, s.heads * s.value_dim);
    KvLayer cache = empty_cache();
    for (std::uint32_t begin = 0; begin < length[0]; begin += chunk) {
      Tokens tokens;
      for (std::uint32_t b : {0U, 1U}) tokens.add(b, std::min(begin, length[b]), std::min(begin + chunk, length[b]));
      step(exec, cache, tokens, out.view());
    }
    return out;
  }

  [[nodiscard]] std::size_t first(std::uint32_t position) const {
    if (s.span.kind == SpanKind::window) return position < s.span.tokens ? 0 : position - s.span.tokens + 1;
    if (s.span.kind == SpanKind::chunked) return position - position % s.span.tokens;
    return 0;
  }

  [[nodiscard]] reference::BoundedMatrix expected() const {
    reference::BoundedMatrix out(q.view().rows);
    for (std::uint32_t b : {0U, 1U})
      for (std::size_t h = 0; h < s.heads; ++h) {
        std::size_t const g = h / (s.heads / s.kv_heads);
        std::vector<std::vector<float>> keys(length[b], std::vector<float>(s.key_dim));
        std::vector<std::vector<float>> values(length[b], std::vector<float>(s.value_dim));
        for (std::uint32_t p = 0; p < length[b]; ++p) {
          float const* key = k.view().row(row_of(b, p)) + g * s.key_dim;
          float const* value = s.values == KvValues::in_keys ? key : v.view().row(row_of(b, p)) + g * s.value_dim;
          std::size_t const first = s.values == KvValues::in_keys ? s.value_dim : s.key_dim;
          reference::as_cached(key, first, s.dtype, keys[p].data());
          reference::as_cached(key + first, s.key_dim - first, s.dtype, keys[p].data() + first);
          reference::as_cached(value, s.value_dim, s.dtype, values[p].data());
        }
        for (std::uint32_t p = 0; p < length[b]; ++p) {
          auto const head =
              reference::attention(q.view().row(row_of(b, p)) + h * s.key_dim, keys, values, s.dtype, first(p), p,
                                   static_cast<double>(scale()), s.sinks ? std::optional(sinks[h]) : std::nullopt);
          out[row_of(b, p)].insert(out[row_of(b, p)].end(), head.begin(), head.end());
        }
      }
    return out;
  }
};

constexpr AttentionSpan window(std::size_t tokens) {
  return {.kind = SpanKind::window, .tokens = tokens};
}
constexpr AttentionSpan chunked(std::size_t tokens) {
  return {.kind = SpanKind::chunked, .tokens = tokens};
}
constexpr AttentionSpan kSpans[] = {{},         window(1),   window(5),   window(16),    window(23), window(1000),
                                    chunked(1), chunked(16), chunked(23), chunked(1000), chunked(7)};

static_assert(std::size(kSpans) % 2 == 1);

constexpr DType kCacheTypes[] = {DType::f32, DType::bf16, DType::i8};

constexpr Shape kShapes[] = {{1, 1, 1, 1},   {3, 3, 24, 24}, {6, 2, 72, 72}, {5, 1, 7, 7},  {9, 1, 16, 16},
                             {4, 1, 33, 33}, {8, 2, 64, 64}, {3, 1, 5, 24},  {6, 3, 24, 5}, {7, 1, 1, 72},
                             {2, 2, 72, 1},  {33, 1, 8, 40}, {70, 1, 24, 16}};
// key_dim - value_dim: the part that is key only.
constexpr Shape kLatentShapes[] = {{1, 1, 1, 1},    {3, 1, 24, 16}, {16, 1, 40, 33}, {5, 1, 7, 5},
                                   {67, 1, 32, 24}, {4, 2, 72, 64}, {3, 3, 24, 24}};

TEST_P(PagedAttentionTest, EqualsAPlainSoftmax) {
  Rig rig(GetParam(), 2);
  for (Shape s : kShapes)
    for (DType dtype : kCacheTypes)
      for (AttentionSpan const& span : kSpans) {
        s.dtype = dtype;
        s.span = span;
        s.sinks = !s.sinks;  // an odd number of spans: each comes with and without
        Case const c(s);
        EXPECT_EQ(reference::num_wrong(c.run(rig.exec, 1000).view(), c.expected()), 0U) << s;
      }
}

TEST_P(PagedAttentionTest, ValuesInKeysEqualAPlainSoftmax) {
  Rig rig(GetParam(), 2);
  for (Shape s : kLatentShapes)
    for (DType dtype : kCacheTypes)
      for (AttentionSpan const& span : kSpans) {
        s.dtype = dtype;
        s.span = span;
        s.sinks = !s.sinks;  // an odd number of spans: each comes with and without
        s.values = KvValues::in_keys;
        Case const c(s);
        EXPECT_EQ(reference::num_wrong(c.run(rig.exec, 1000).view(), c.expected()), 0U) << s;
      }
}

TEST_P(PagedAttentionTest, ValuesInKeysHaveTheBitsOfTheSameValuesApart) {
  Rig rig(GetParam(), 2);
  for (DType dtype : kCacheTypes) {
    std::size_t const key_dim =
        dtype == DType::i8 ? 40 : 50;  // what is behind the values would have a scale of its own
    Case const latent(
        {.heads = 6, .kv_heads = 2, .key_dim = key_dim, .value_dim = 40, .dtype = dtype, .values = KvValues::in_keys});
    Case apart({.heads = 6, .kv_heads = 2, .key_dim = key_dim, .value_dim = 40, .dtype = dtype});
    for (std::size_t r = 0; r < apart.v.view().rows; ++r)
      for (std::size_t g = 0; g < 2; ++g)
        std::copy_n(apart.k.view().row(r) + g * key_dim, 40, apart.v.view().row(r) + g * 40);
    EXPECT_TRUE(same_bits(latent.run(rig.exec, 1000).view(), apart.run(rig.exec, 1000).view()));
  }
}

TEST_P(PagedAttentionTest, ASpanOneTooLongIsNoticed) {
  Rig rig(GetParam());
  for (auto const& [right, wrong] :
       {std::pair(window(16), window(17)), std::pair(chunked(16), chunked(17)), std::pair(window(16), chunked(16))}) {
    Case const one({.heads = 2, .kv_heads = 1, .key_dim = 24, .value_dim = 24, .span = right});
    Case const other({.heads = 2, .kv_heads = 1, .key_dim = 24, .value_dim = 24, .span = wrong});
    EXPECT_NE(reference::num_wrong(other.run(rig.exec, 1000).view(), one.expected()), 0U);
  }
}

TEST_P(PagedAttentionTest, ASinkOfTheNextHeadIsNoticed) {
  Rig rig(GetParam());
  Case c({.heads = 6, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .sinks = true});
  auto const expected = c.expected();
  std::rotate(c.sinks.begin(), c.sinks.begin() + 1, c.sinks.end());
  EXPECT_NE(reference::num_wrong(c.run(rig.exec, 1000).view(), expected), 0U);
}

TEST_P(PagedAttentionTest, ASinkOfMinusInfinityIsNone) {
  Rig rig(GetParam());
  Case c({.heads = 3, .kv_heads = 1, .key_dim = 8, .value_dim = 8, .sinks = true});
  c.sinks.assign(3, -std::numeric_limits<float>::infinity());
  Case const none({.heads = 3, .kv_heads = 1, .key_dim = 8, .value_dim = 8});
  EXPECT_EQ(reference::num_wrong(c.run(rig.exec, 1000).view(), none.expected()), 0U);
}

TEST_P(PagedAttentionTest, ATokenHasTheSameBitsForAnyChunkingAndThreadCount) {
  Shape const shapes[] = {
      {.heads = 6, .kv_heads = 2, .key_dim = 40, .value_dim = 40, .dtype = DType::bf16},
      {.heads = 6, .kv_heads = 2, .key_dim = 40, .value_dim = 40, .dtype = DType::bf16, .span = window(20)},
      {.heads = 7, .kv_heads = 1, .key_dim = 24, .value_dim = 5, .span = chunked(20), .sinks = true},
      {.heads = 37, .kv_heads = 1, .key_dim = 24, .value_dim = 20, .dtype = DType::bf16, .values = KvValues::in_keys},
      {.heads = 9, .kv_heads = 1, .key_dim = 41, .value_dim = 40, .dtype = DType::i8, .span = window(20)},
      {.heads = 37, .kv_heads = 1, .key_dim = 24, .value_dim = 19, .dtype = DType::i8, .values = KvValues::in_keys}};
  for (Shape const& s : shapes) {
    Case const c(s);
    Rig one(GetParam());
    auto const whole = c.run(one.exec, 1000);
    for (std::size_t threads : {1, 2, 3, 5}) {
      Rig rig(GetParam(), threads);
      for (std::uint32_t chunk : {1U, 7U, 16U, 33U, 1000U})
        EXPECT_TRUE(same_bits(c.run(rig.exec, chunk).view(), whole.view()))
            << s << ", " << threads << " threads, chunks of " << chunk;
    }
  }
}

// Scores become weights 64 positions at a time.
TEST_P(PagedAttentionTest, LongerSequencesEqualAPlainSoftmaxForAnyChunking) {
  Rig rig(GetParam(), 2);
  for (DType dtype : kCacheTypes)
    for (AttentionSpan const& span : {AttentionSpan{}, window(70), chunked(100)}) {
      Case const c({.heads = 6, .kv_heads = 2, .key_dim = 24, .value_dim = 20, .dtype = dtype, .span = span}, 200);
      auto const whole = c.run(rig.exec, 1000);
      EXPECT_EQ(reference::num_wrong(whole.view(), c.expected()), 0U) << c.s;
      for (std::uint32_t chunk : {7U, 64U, 90U})
        EXPECT_TRUE(same_bits(c.run(rig.exec, chunk).view(), whole.view())) << c.s << ", chunks of " << chunk;
    }
}

// Of neighbours that leave a gap between their windows, nobody looks into the gap, where there are no blocks.
TEST_P(PagedAttentionTest, WhatLiesBetweenWindowsIsLeftAlone) {
  Rig rig(GetParam());
  Case c({.heads = 4, .kv_heads = 1, .key_dim = 8, .value_dim = 8, .span = window(16)}, 200);
  auto const whole = c.run(rig.exec, 1000);
  Matrix<float> out(whole.view().rows, whole.view().cols);
  KvLayer cache = c.empty_cache();
  Tokens all;
  all.add(0, 0, 200);
  c.step(rig.exec, cache, all, out.view());
  for (std::size_t block = 2; block < 10; ++block) c.tables[block] = kNoKvBlock;
  Tokens some;  // so many that two are attended to together, 28 and 190, too
  some.add(0, 20, 29);
  some.add(0, 190, 199);
  c.step(rig.exec, cache, some, out.view());
  for (std::size_t row : {28U, 190U})
    EXPECT_TRUE(same_bits(out.view().row_range(row, 1), whole.view().row_range(row, 1))) << row;
}

TEST_P(PagedAttentionTest, ASequenceHasTheSameBitsInOtherBlocksAndWithoutTheOther) {
  for (auto const& [values, dtype] :
       {std::pair(KvValues::separate, DType::f32), std::pair(KvValues::in_keys, DType::f32),
        std::pair(KvValues::separate, DType::i8), std::pair(KvValues::in_keys, DType::i8)}) {
    Case c({.heads = 6, .kv_heads = 2, .key_dim = 40, .value_dim = 40, .dtype = dtype, .values = values});
    Rig rig(GetParam());
    auto const together = c.run(rig.exec, 1000);
    c.tables = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 30, 3, 1};
    Matrix<float> alone(together.view().rows, together.view().cols);
    KvLayer cache = c.empty_cache();
    Tokens tokens;
    tokens.add(0, 0, c.length[0]);
    c.step(rig.exec, cache, tokens, alone.view());
    EXPECT_TRUE(same_bits(alone.view().first_rows(c.length[0]), together.view().first_rows(c.length[0])));
  }
}

TEST_P(PagedAttentionTest, HasTheBitsOfScalarButForBfloat16WithAnInstructionOfItsOwn) {
  Rig scalar(Isa::scalar);
  Rig rig(GetParam());
  for (DType dtype : kCacheTypes)
    for (KvValues values : {KvValues::separate, KvValues::in_keys}) {
      Case const c({.heads = 7,
                    .kv_heads = 1,
                    .key_dim = 35,
                    .value_dim = 33,
                    .dtype = dtype,
                    .span = window(40),
                    .sinks = true,
                    .values = values});
      bool const own_order = GetParam() == Isa::avx512_bf16 || GetParam() == Isa::amx;
      EXPECT_EQ(same_bits(c.run(rig.exec, 1000).view(), c.run(scalar.exec, 1000).view()),
                dtype != DType::bf16 || !own_order)
          << name_of(dtype);
    }
}

TEST_P(PagedAttentionTest, NaNInOneKeyIsNotHidden) {
  Rig rig(GetParam());
  for (DType dtype : kCacheTypes)
    for (bool const in_value : {false, true}) {
      Case c({.heads = 2, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .dtype = dtype});
      (in_value ? c.v : c.k).view().row(3)[0] = std::numeric_limits<float>::quiet_NaN();  // sequence 0, head 0
      auto const out = c.run(rig.exec, 1000);
      EXPECT_EQ(out.view().row(2)[0], out.view().row(2)[0]);
      EXPECT_NE(out.view().row(3)[0], out.view().row(3)[0]);
      EXPECT_NE(out.view().row(69)[0], out.view().row(69)[0]);
      EXPECT_EQ(out.view().row(69)[8], out.view().row(69)[8]);
    }
}

// Three numbers of three sizes in one position: two scales, of the key and of the value, or where values lie in the
// keys of these and of what the key has behind them.
TEST(KvWrite, Int8HasAScaleForEachPart) {
  Rig rig(best_isa());
  std::uint32_t const position = 18, sequence = 0, offset = 0;  // slot 2 of the second block
  std::vector<std::uint32_t> const table = {1, 3};
  TokenPlaces const places{
      .positions = {&position, 1}, .sequences = {&sequence, 1}, .block_tables = table, .table_offsets = {&offset, 1}};
  float const key[] = {0.5F, -1.0F, 127e-6F, 0};
  for (KvValues const values : {KvValues::separate, KvValues::in_keys}) {
    bool const apart = values == KvValues::separate;
    KvLayer cache(
        {.num_blocks = 4, .num_kv_heads = 1, .key_dim = 4, .value_dim = 2, .values = values, .dtype = DType::i8});
    float const value[] = {-300, 254};
    kv_write(rig.exec, {key, 1, 4}, {value, 1, apart ? 2U : 0U}, places, cache);
    std::byte const* block = cache.blocks().data() + 3 * cache.bytes_per_block(cache.shape());
    auto const* keys = reinterpret_cast<std::int8_t const*>(block) + 2;
    auto const* stored = reinterpret_cast<std::int8_t const*>(block) + 4 * 16 + 2 * 2;
    float const* scales = reinterpret_cast<float const*>(block + (apart ? 6 : 4) * 16) + 2;
    EXPECT_EQ((std::vector<int>{keys[0], keys[16], keys[32], keys[48]}),
              apart ? (std::vector<int>{64, -127, 0, 0}) : (std::vector<int>{64, -127, 127, 0}));  // 63.5 to even
    EXPECT_EQ(scales[0], 1.0F / 127);
    EXPECT_EQ(scales[16], apart ? 300.0F / 127 : 127e-6F / 127);
    if (apart) {
      EXPECT_EQ((std::vector<int>{stored[0], stored[1]}), (std::vector<int>{-127, 108}));  // 107.5… up
    }
  }
}

TEST(KvLayer, BytesPerBlock) {
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .key_dim = 24, .value_dim = 24, .dtype = DType::f32}),
            2U * 3 * 24 * 16 * 4);
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .key_dim = 24, .value_dim = 8, .dtype = DType::bf16}),
            3U * (24 + 8) * 16 * 2);
  EXPECT_EQ(KvLayer::bytes_per_block(
                {.num_kv_heads = 1, .key_dim = 72, .value_dim = 64, .values = KvValues::in_keys, .dtype = DType::bf16}),
            72U * 16 * 2);
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .key_dim = 7, .value_dim = 5, .dtype = DType::bf16}),
            3U * (8 + 5) * 16 * 2);
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .key_dim = 24, .value_dim = 8, .dtype = DType::i8}),
            3U * (24 + 8 + 2 * 4) * 16);
  EXPECT_EQ(KvLayer::bytes_per_block(
                {.num_kv_heads = 1, .key_dim = 72, .value_dim = 64, .values = KvValues::in_keys, .dtype = DType::i8}),
            (72U + 2 * 4) * 16);
}

}  // namespace
}  // namespace expertmesh
