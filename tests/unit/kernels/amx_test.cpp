// The GEMMs on tile registers, with registers that are emulated: what lies in a tile, ends of rows, panels and groups,
// and which bits come out. The instructions themselves need a processor that has them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "common/kernels/isa/amx_shape.h"
#include "common/kernels/isa/vec_scalar.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

struct Tiles {
  std::size_t configured_rows = 0;  // 0: released
  std::byte bytes[8][kTileHeight][kTileRowBytes];

  std::size_t rows_of(int t) const {
    EXPECT_GT(configured_rows, 0U) << "the registers are not this thread's";
    return t < 5 ? configured_rows : kTileHeight;
  }
  template <class T>
  T& number(int t, std::size_t row, std::size_t i) {
    return reinterpret_cast<T*>(bytes[t][row])[i];
  }
};
thread_local Tiles emulated;

class TileRegisters {
 public:
  explicit TileRegisters(std::size_t rows) {
    EXPECT_EQ(emulated.configured_rows, 0U);
    EXPECT_TRUE(rows >= 1 && rows <= kTileHeight) << rows;
    emulated.configured_rows = rows;
    std::memset(emulated.bytes, 0xff, sizeof emulated.bytes);  // NaN
  }
  ~TileRegisters() { emulated.configured_rows = 0; }
};

template <int T>
void zero_tile() {
  std::memset(emulated.bytes[T], 0, emulated.rows_of(T) * kTileRowBytes);
}
template <int T>
void load_tile(void const* rows, std::size_t stride = kTileRowBytes) {
  for (std::size_t i = 0; i < emulated.rows_of(T); ++i)
    std::memcpy(emulated.bytes[T][i], static_cast<std::byte const*>(rows) + i * stride, kTileRowBytes);
}
template <int T>
void store_tile(void* rows) {
  std::memcpy(rows, emulated.bytes[T], emulated.rows_of(T) * kTileRowBytes);
}
template <int C, int A, int B>
void add_bf16_products() {
  for (std::size_t m = 0; m < emulated.rows_of(C); ++m)
    for (std::size_t n = 0; n < 16; ++n) {
      float sums[2] = {};
      for (std::size_t i = 0; i < 32; ++i)
        sums[i % 2] = std::fma(to_float(emulated.number<bf16>(A, m, i)),
                               to_float(emulated.number<bf16>(B, i / 2, 2 * n + i % 2)), sums[i % 2]);
      emulated.number<float>(C, m, n) += sums[0] + sums[1];
    }
}
template <int C, int A, int B>
void add_int8_products() {
  for (std::size_t m = 0; m < emulated.rows_of(C); ++m)
    for (std::size_t n = 0; n < 16; ++n)
      for (std::size_t i = 0; i < 64; ++i)
        emulated.number<std::int32_t>(C, m, n) +=
            emulated.number<std::int8_t>(A, m, i) * emulated.number<std::uint8_t>(B, i / 4, 4 * n + i % 4);
}

}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/gemm_amx_impl.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

// Rows [first, first + m) of x by a GEMM over all panels of w, in parts of two. make_row: as the GEMM takes a row.
template <class Gemm, class MakeRow>
Matrix<float> run(MatrixView<float const> x, PackedMatrix const& w, Gemm gemm, std::size_t row_bytes,
                  MakeRow make_row) {
  Matrix<float> y(x.rows, w.n());
  std::vector<AlignedBuffer<std::byte>> rows;  // each of its own, so that what is read beyond one is noticed
  std::vector<void const*> x_rows;
  std::vector<float*> y_rows;
  for (std::size_t m = 0; m < x.rows; ++m) {
    rows.emplace_back(row_bytes);
    make_row(x.row(m), rows.back().data());
    x_rows.push_back(rows.back().data());
    y_rows.push_back(y.view().row(m));
  }
  std::size_t const panels = (w.n() + kPanelColumns - 1) / kPanelColumns;
  for (std::size_t panel = 0; panel < panels; panel += 2)
    gemm({.x = x_rows.data(),
          .y = y_rows.data(),
          .m = x.rows,
          .n = w.n(),
          .k = w.k(),
          .panels = w.data(),
          .panel_begin = panel,
          .panel_end = std::min(panel + 2, panels)});
  EXPECT_EQ(emulated.configured_rows, 0U) << "the registers are left to the thread";
  return y;
}

TEST(AmxTiles, Int8HasTheBitsOfScalar) {
  Rig const scalar(Isa::scalar);
  for (std::size_t m : {1, 3, 16, 17, 35})
    for (std::size_t n : {1, 16, 33, 70, 100})
      for (std::size_t k : {1, 4, 63, 65, 128, 130, 200, 257}) {
        auto const x = random_matrix(m, k, 1);
        PackedMatrix const w = reference::packed(kInt8Weights, random_matrix(n, k, 2).view());
        auto const with = [&](auto gemm) {
          return run(x.view(), w, gemm, quantised_row_bytes(k),
                     [&](float const* row, std::byte* out) { quantise_int8(row, k, out); });
        };
        EXPECT_TRUE(same_bits(with(gemm_on_tiles<TilesInt8>).view(), with(scalar.exec.table().gemm_int8).view()))
            << "M " << m << " N " << n << " K " << k;
      }
}

// The sum as the instruction's description has it, number by number: so it depends on nothing but the row.
Matrix<float> plain_bf16(MatrixView<float const> x, MatrixView<float const> w) {
  Matrix<float> y(x.rows, w.rows);
  for (std::size_t m = 0; m < x.rows; ++m)
    for (std::size_t n = 0; n < w.rows; ++n) {
      float& sum = y.view().row(m)[n];
      for (std::size_t begin = 0; begin < x.cols; begin += 32) {
        float even = 0;
        float odd = 0;
        for (std::size_t k = begin; k < std::min(begin + 32, x.cols); ++k) {
          float& part = k % 2 == 0 ? even : odd;
          part = std::fma(reference::rounded(x.row(m)[k], DType::bf16), reference::rounded(w.row(n)[k], DType::bf16),
                          part);
        }
        sum += even + odd;
      }
    }
  return y;
}

Matrix<float> run_bf16(MatrixView<float const> x, MatrixView<float const> w) {
  Rig const scalar(Isa::scalar);
  return run(x, reference::packed(kBfloat16Weights, w), gemm_on_tiles<TilesBf16>, 2 * x.cols,
             [&](float const* row, std::byte* out) {
               scalar.exec.table().round_bf16(row, x.cols, reinterpret_cast<std::uint16_t*>(out));
             });
}

TEST(AmxTiles, Bfloat16HasTheBitsThatTheInstructionGives) {
  for (std::size_t m : {1, 3, 16, 17, 35})
    for (std::size_t n : {1, 16, 33, 70, 100})
      for (std::size_t k : {1, 2, 31, 32, 33, 96, 129}) {
        auto const x = random_matrix(m, k, 1);
        auto const w = random_matrix(n, k, 2);
        auto const y = run_bf16(x.view(), w.view());
        EXPECT_TRUE(same_bits(y.view(), plain_bf16(x.view(), w.view()).view()))
            << "M " << m << " N " << n << " K " << k;
        EXPECT_EQ(reference::num_wrong(y.view(), reference::linear(x.view(), w.view(), kBfloat16Weights)), 0U);
      }
}

// As strips of weights that are decoded a strip at a time: the bits of the whole.
TEST(AmxTiles, ASumGoesOnWhereItWasLeft) {
  constexpr std::size_t kK = 100;
  constexpr std::size_t kStrip = 64;
  auto const x = random_matrix(5, kK, 1);
  auto const w = random_matrix(20, kK, 2);
  PackedMatrix const first = reference::packed(kBfloat16Weights, w.view().columns(0, kStrip));
  PackedMatrix const second = reference::packed(kBfloat16Weights, w.view().columns(kStrip, kK - kStrip));
  auto const rounded = [&](float const* row, std::size_t n, std::byte* out) {
    Rig(Isa::scalar).exec.table().round_bf16(row, n, reinterpret_cast<std::uint16_t*>(out));
  };
  auto const both = run(
      x.view(), first,
      [&](GemmPart part) {
        gemm_on_tiles<TilesBf16>(part);
        std::vector<AlignedBuffer<std::byte>> rows;
        std::vector<void const*> x_rows;
        for (std::size_t m = 0; m < part.m; ++m) {
          rows.emplace_back(2 * (kK - kStrip));
          rounded(x.view().row(m) + kStrip, kK - kStrip, rows.back().data());
          x_rows.push_back(rows.back().data());
        }
        part.x = x_rows.data();
        part.k = kK - kStrip;
        part.panels = second.data();
        part.continues = true;
        gemm_on_tiles<TilesBf16>(part);
      },
      2 * kStrip, [&](float const* row, std::byte* out) { rounded(row, kStrip, out); });
  EXPECT_TRUE(same_bits(both.view(), run_bf16(x.view(), w.view()).view()));
}

TEST(AmxTiles, ARowsInfinityMeetsNothingBehindItsEnd) {
  auto x = random_matrix(2, 33, 1);
  auto const w = random_matrix(16, 33, 2);
  x.view().row(1)[3] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(same_bits(run_bf16(x.view(), w.view()).view(), plain_bf16(x.view(), w.view()).view()));
}

}  // namespace
}  // namespace expertmesh
