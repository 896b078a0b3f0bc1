#include "common/kernels/paged_attention.h"

#include <gtest/gtest.h>

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

// Two sequences in scattered blocks. Sequence 0 has kLength[0] tokens with the rows 0… of q, k, v; sequence 1 follows.
struct Case {
  static constexpr std::uint32_t kLength[] = {70, 37};
  std::size_t heads, kv_heads, d;
  DType dtype;
  std::optional<std::size_t> window;
  std::vector<std::uint32_t> tables = {31, 2, 17, 8, 25, /* sequence 1: */ 3, 30, 0};
  std::vector<std::uint32_t> offsets = {0, 5, 8};
  Matrix<float> q, k, v;

  Case(std::size_t num_heads, std::size_t num_kv_heads, std::size_t head_dim, DType type,
       std::optional<std::size_t> window_size = {})
      : heads(num_heads),
        kv_heads(num_kv_heads),
        d(head_dim),
        dtype(type),
        window(window_size),
        q(random_matrix(kLength[0] + kLength[1], heads * d, 1)),
        k(random_matrix(kLength[0] + kLength[1], kv_heads * d, 2)),
        v(random_matrix(kLength[0] + kLength[1], kv_heads * d, 3)) {
    for (std::size_t i = 0; i < q.view().rows * q.view().cols; ++i) q.view().data[i] *= 4;  // a sharper softmax
  }
  [[nodiscard]] static std::size_t row_of(std::uint32_t sequence, std::uint32_t position) {
    return (sequence == 0 ? 0 : kLength[0]) + position;
  }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(d)); }

  // A cache in which whatever was never written is NaN.
  [[nodiscard]] KvLayer empty_cache() const {
    KvLayer cache({.num_blocks = kBlocks, .num_kv_heads = kv_heads, .head_dim = d, .dtype = dtype});
    std::size_t const bytes = kBlocks * KvLayer::bytes_per_block(cache.shape()) / 2;
    std::memset(cache.keys(), 0xff, bytes);
    std::memset(cache.values(), 0xff, bytes);
    return cache;
  }

  // Writes and attends one call's tokens; their outputs land in `out` at the rows of row_of.
  void step(Exec const& exec, KvLayer& cache, Tokens const& tokens, MatrixView<float> out) const {
    std::size_t const t = tokens.positions.size();
    Matrix<float> qs(t, heads * d), ks(t, kv_heads * d), vs(t, kv_heads * d), outs(t, heads * d);
    auto const row = [&](std::size_t i) { return row_of(tokens.sequences[i], tokens.positions[i]); };
    for (std::size_t i = 0; i < t; ++i) {
      std::copy_n(q.view().row(row(i)), heads * d, qs.view().row(i));
      std::copy_n(k.view().row(row(i)), kv_heads * d, ks.view().row(i));
      std::copy_n(v.view().row(row(i)), kv_heads * d, vs.view().row(i));
    }
    TokenPlaces const places{
        .positions = tokens.positions, .sequences = tokens.sequences, .block_tables = tables, .table_offsets = offsets};
    kv_write(exec, ks.view(), vs.view(), places, cache);
    paged_attention(exec, qs.view(), places, cache, {.num_heads = heads, .scale = scale(), .window = window},
                    outs.view());
    for (std::size_t i = 0; i < t; ++i) std::copy_n(outs.view().row(i), heads * d, out.row(row(i)));
  }

  // All tokens in chunks of `chunk` positions per sequence, both sequences in each call.
  [[nodiscard]] Matrix<float> run(Exec const& exec, std::uint32_t chunk) const {
    Matrix<float> out(q.view().rows, heads * d);
    KvLayer cache = empty_cache();
    for (std::uint32_t begin = 0; begin < kLength[0]; begin += chunk) {
      Tokens tokens;
      for (std::uint32_t s : {0U, 1U}) tokens.add(s, std::min(begin, kLength[s]), std::min(begin + chunk, kLength[s]));
      step(exec, cache, tokens, out.view());
    }
    return out;
  }

  [[nodiscard]] reference::BoundedMatrix expected() const {
    reference::BoundedMatrix out(q.view().rows);
    for (std::uint32_t s : {0U, 1U})
      for (std::size_t h = 0; h < heads; ++h) {
        std::size_t const column = h / (heads / kv_heads) * d;
        std::vector<std::vector<float>> keys(kLength[s], std::vector<float>(d)), values = keys;
        for (std::uint32_t p = 0; p < kLength[s]; ++p)
          for (std::size_t i = 0; i < d; ++i) {
            keys[p][i] = reference::rounded(k.view().row(row_of(s, p))[column + i], dtype);
            values[p][i] = reference::rounded(v.view().row(row_of(s, p))[column + i], dtype);
          }
        for (std::uint32_t p = 0; p < kLength[s]; ++p) {
          auto const head = reference::attention(q.view().row(row_of(s, p)) + h * d, keys, values, p, d,
                                                 static_cast<double>(scale()), window);
          out[row_of(s, p)].insert(out[row_of(s, p)].end(), head.begin(), head.end());
        }
      }
    return out;
  }
};

TEST_P(PagedAttentionTest, EqualsAPlainSoftmax) {
  Rig rig(GetParam(), 2);
  struct Shape {
    std::size_t heads, kv_heads, d;
  };
  for (Shape s : {Shape{1, 1, 1}, {3, 3, 24}, {6, 2, 72}, {5, 1, 7}, {9, 1, 16}, {4, 1, 33}, {8, 2, 64}})
    for (DType dtype : {DType::f32, DType::bf16})
      for (std::optional<std::size_t> window : {std::optional<std::size_t>(), {1}, {5}, {16}, {23}, {1000}}) {
        Case const c(s.heads, s.kv_heads, s.d, dtype, window);
        EXPECT_EQ(reference::num_wrong(c.run(rig.exec, 1000).view(), c.expected()), 0U)
            << s.heads << " heads over " << s.kv_heads << " of " << s.d << ", " << name_of(dtype) << ", window "
            << window.value_or(0);
      }
}

TEST_P(PagedAttentionTest, AWindowOneTooWideIsNoticed) {
  Rig rig(GetParam());
  Case const narrow(2, 1, 24, DType::f32, 16);
  Case const wide(2, 1, 24, DType::f32, 17);
  EXPECT_NE(reference::num_wrong(wide.run(rig.exec, 1000).view(), narrow.expected()), 0U);
}

TEST_P(PagedAttentionTest, ATokenHasTheSameBitsForAnyChunkingAndThreadCount) {
  for (std::optional<std::size_t> window : {std::optional<std::size_t>(), {20}}) {
    Case const c(6, 2, 40, DType::bf16, window);
    Rig one(GetParam());
    auto const whole = c.run(one.exec, 1000);
    for (std::size_t threads : {1, 2, 3}) {
      Rig rig(GetParam(), threads);
      for (std::uint32_t chunk : {1U, 7U, 16U, 33U, 1000U})
        EXPECT_TRUE(same_bits(c.run(rig.exec, chunk).view(), whole.view()))
            << threads << " threads, chunks of " << chunk;
    }
  }
}

TEST_P(PagedAttentionTest, ASequenceHasTheSameBitsInOtherBlocksAndWithoutTheOther) {
  Case c(6, 2, 40, DType::f32);
  Rig rig(GetParam());
  auto const together = c.run(rig.exec, 1000);
  c.tables = {5, 6, 7, 8, 9, 30, 3, 1};
  Matrix<float> alone(together.view().rows, together.view().cols);
  KvLayer cache = c.empty_cache();
  Tokens tokens;
  tokens.add(0, 0, Case::kLength[0]);
  c.step(rig.exec, cache, tokens, alone.view());
  EXPECT_TRUE(same_bits(alone.view().first_rows(Case::kLength[0]), together.view().first_rows(Case::kLength[0])));
}

TEST_P(PagedAttentionTest, HasTheBitsOfScalar) {
  Rig scalar(Isa::scalar);
  Rig rig(GetParam());
  for (DType dtype : {DType::f32, DType::bf16}) {
    Case const c(5, 1, 33, dtype, 40);
    EXPECT_TRUE(same_bits(c.run(rig.exec, 1000).view(), c.run(scalar.exec, 1000).view()));
  }
}

TEST_P(PagedAttentionTest, NaNInOneKeyIsNotHidden) {
  Rig rig(GetParam());
  Case c(2, 2, 8, DType::f32);
  c.k.view().row(3)[0] = std::numeric_limits<float>::quiet_NaN();  // sequence 0, head 0
  auto const out = c.run(rig.exec, 1000);
  EXPECT_EQ(out.view().row(2)[0], out.view().row(2)[0]);
  EXPECT_NE(out.view().row(3)[0], out.view().row(3)[0]);
  EXPECT_NE(out.view().row(69)[0], out.view().row(69)[0]);
  EXPECT_EQ(out.view().row(69)[8], out.view().row(69)[8]);
}

TEST(KvLayer, BytesPerBlock) {
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .head_dim = 24, .dtype = DType::f32}), 2U * 3 * 24 * 16 * 4);
  EXPECT_EQ(KvLayer::bytes_per_block({.num_kv_heads = 3, .head_dim = 24, .dtype = DType::bf16}), 2U * 3 * 24 * 16 * 2);
}

}  // namespace
}  // namespace expertmesh
