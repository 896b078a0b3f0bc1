// GEMMs on tile registers: blocks of 16 rows against up to four vectors of columns. In a panel these lie as the
// instructions want the rows of their second operand: [16][2] bfloat16 of two k, [16][4] bytes of four. The tile
// registers are those that were included before.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "common/kernels/isa/amx_shape.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/isa/gemm_int8_impl.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr int kTileA = 4;       // 0 … 3 are the sums of the vectors
constexpr int kFirstTileB = 5;  // and two more, in turn
constexpr std::size_t kVectorsOfTiles = 4;

template <class T>
struct alignas(64) TileBytes {
  T number[kTileHeight][kTileRowBytes / sizeof(T)];
};

// A tile of a vector's columns, whose rows are kPanelRowBytes apart. Where fewer than 16 are left of a panel, zeros
// behind them: what is not there is not read.
constexpr std::size_t kPanelRowBytes = kPanelVectors * kTileRowBytes;
template <int T>
void load_weights(std::byte const* rows, std::size_t left) {
  if (left >= kTileHeight) return load_tile<T>(rows, kPanelRowBytes);
  TileBytes<std::byte> room{};
  for (std::size_t i = 0; i < left; ++i) std::memcpy(room.number[i], rows + i * kPanelRowBytes, kTileRowBytes);
  load_tile<T>(&room);
}

inline void store_rows(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t vector,
                       TileBytes<float> const& sums) {
  std::size_t const column = vector * kLanes;
  for (std::size_t i = 0; i < rows; ++i) store_some(g.y[row + i] + column, load(sums.number[i]), g.n - column);
}

template <int T>
void start_sums(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t vector) {
  if (!g.continues) return zero_tile<T>();
  std::size_t const column = vector * kLanes;
  TileBytes<float> sums{};
  for (std::size_t i = 0; i < rows; ++i) store(sums.number[i], load_some(g.y[row + i] + column, g.n - column));
  load_tile<T>(&sums);
}

// f.operator()<0>() … f.operator()<N - 1>()
template <std::size_t N, class F>
void for_vectors(F const& f) {
  [&]<int... J>(std::integer_sequence<int, J...>) {
    (f.template operator()<J>(), ...);
  }
  (std::make_integer_sequence<int, static_cast<int>(N)>());
}

// Sums over k in steps of 32, as add_bf16_products() has them. So a row's bits are others than vdpbf16ps gives, and
// there are tiles for every number of rows, one too. Sums go on from where g.continues left them if that was whole
// steps.
struct TilesBf16 {
  template <std::size_t NV>
  static void block(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t vector) {
    constexpr std::size_t kStep = kTileRowBytes / sizeof(std::uint16_t);
    std::size_t const pairs = (g.k + 1) / 2;
    TileBytes<std::uint16_t> x{};
    for_vectors<NV>([&]<int J>() { start_sums<J>(g, row, rows, vector + J); });
    for (std::size_t k = 0; k < g.k; k += kStep) {
      std::size_t const left = std::min(kStep, g.k - k);
      for (std::size_t i = 0; i < rows; ++i) {
        auto const* const from = static_cast<std::uint16_t const*>(g.x[row + i]) + k;
        if (left == kStep) {
          std::memcpy(x.number[i], from, kTileRowBytes);
        } else {
          std::memset(x.number[i], 0, kTileRowBytes);
          std::memcpy(x.number[i], from, left * sizeof *from);
        }
      }
      load_tile<kTileA>(&x);
      for_vectors<NV>([&]<int J>() {
        constexpr int kB = kFirstTileB + J % 3;
        std::byte const* const panel = g.panels + (vector + J) / kPanelVectors * pairs * kPanelRowBytes;
        load_weights<kB>(panel + (vector + J) % kPanelVectors * kTileRowBytes + k / 2 * kPanelRowBytes, pairs - k / 2);
        add_bf16_products<J, kTileA, kB>();
      });
    }
    for_vectors<NV>([&]<int J>() {
      TileBytes<float> sums;
      store_tile<J>(&sums);
      store_rows(g, row, rows, vector + J, sums);
    });
  }
};

// The bits of GemmInt8, and rows as that takes them.
struct TilesInt8 {
  template <std::size_t NV>
  static void block(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t vector) {
    constexpr std::size_t kStep = kTileRowBytes;
    TileBytes<std::int8_t> x{};
    TileBytes<float> sums[NV] = {};
    for (std::size_t group = 0; group < int8_groups(g.k); ++group) {
      std::size_t const numbers = std::min(kInt8Group, g.k - group * kInt8Group);
      std::size_t const steps = (numbers + kInt8StepK - 1) / kInt8StepK;
      auto const block_of = [&](std::size_t j) {  // a vector's scales are as many bytes as its numbers of a step
        return g.panels + (vector + j) / kPanelVectors * int8_panel_bytes(g.k) + group * kInt8BlockBytes +
               (vector + j) % kPanelVectors * kTileRowBytes;
      };
      auto const row_of = [&](std::size_t i) -> QuantisedGroup const& {
        return static_cast<QuantisedGroup const*>(g.x[row + i])[group];
      };
      for_vectors<NV>([]<int J>() { zero_tile<J>(); });
      for (std::size_t k = 0; k < numbers; k += kStep) {
        for (std::size_t i = 0; i < rows; ++i) std::memcpy(x.number[i], row_of(i).x + k, kStep);
        load_tile<kTileA>(&x);
        std::size_t const step = k / kInt8StepK;
        for_vectors<NV>([&]<int J>() {
          constexpr int kB = kFirstTileB + J % 3;
          load_weights<kB>(block_of(J) + kInt8ScaleBytes + step * kInt8StepBytes, steps - step);
          add_int8_products<J, kTileA, kB>();
        });
      }
      for_vectors<NV>([&]<int J>() {
        TileBytes<std::int32_t> products;
        store_tile<J>(&products);
        Vec const weights = load(reinterpret_cast<float const*>(block_of(J)));
        for (std::size_t i = 0; i < rows; ++i) {
          float whole[kLanes];
          for (std::size_t n = 0; n < kLanes; ++n)
            whole[n] = static_cast<float>(products.number[i][n] + row_of(i).start);
          float* const sum = sums[J].number[i];
          store(sum, fma(load(whole), broadcast(row_of(i).scale) * weights, load(sum)));
        }
      });
    }
    for (std::size_t j = 0; j < NV; ++j) store_rows(g, row, rows, vector + j, sums[j]);
  }
};

template <class Tiles>
void gemm_on_tiles(GemmPart const& g) {
  TileRegisters const registers(std::min(g.m, kTileHeight));
  for (std::size_t row = 0; row < g.m; row += kTileHeight) {
    std::size_t const rows = std::min(kTileHeight, g.m - row);
    std::size_t vector = first_vector(g);
    for (; vector + kVectorsOfTiles <= end_vector(g); vector += kVectorsOfTiles)
      Tiles::template block<kVectorsOfTiles>(g, row, rows, vector);
    for (; vector < end_vector(g); ++vector) Tiles::template block<1>(g, row, rows, vector);
  }
}

// See peak() in gemm_impl.h: as many multiply-adds by tiles.
template <class T, class Add>
float peak_on_tiles(std::size_t rounds, Add add) {
  // A product of tiles is 16 * 16 of vectors, of which a round has kAccumulators.
  std::size_t const times = rounds * kAccumulators / (kTileHeight * kLanes);
  TileRegisters const registers(kTileHeight);
  TileBytes<T> numbers;
  for (auto& row : numbers.number)
    for (T& x : row) x = static_cast<T>(rounds % 5);
  for_vectors<kVectorsOfTiles>([]<int J>() { zero_tile<J>(); });
  load_tile<kTileA>(&numbers);
  load_tile<kFirstTileB>(&numbers);
  for (std::size_t i = 0; i < times / kVectorsOfTiles; ++i) for_vectors<kVectorsOfTiles>(add);
  float total = 0;
  for_vectors<kVectorsOfTiles>([&]<int J>() {
    TileBytes<float> sums;
    store_tile<J>(&sums);
    total += sums.number[0][0];
  });
  return total;
}

}  // namespace
}  // namespace expertmesh
