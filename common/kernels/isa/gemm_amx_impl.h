// GEMMs on tile registers: blocks of 16 rows against up to four panels. The panels lie as the instructions want their
// second operand: [k/2][16][2] bfloat16, [k/4][16][4] bytes. The tile registers are those that were included before.
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

constexpr int kTileA = 4;       // 0 … 3 are the sums of the panels
constexpr int kFirstTileB = 5;  // and two more, in turn
constexpr std::size_t kPanelsOfTiles = 4;

template <class T>
struct alignas(64) TileBytes {
  T number[kTileHeight][kTileRowBytes / sizeof(T)];
};

// The `bytes` of a tile that are left of a panel, zeros behind them: what is not there is not read.
inline void const* whole_tile(std::byte const* panel, std::size_t bytes, TileBytes<std::byte>& room) {
  if (bytes >= sizeof room) return panel;
  std::memset(&room, 0, sizeof room);
  std::memcpy(&room, panel, bytes);
  return &room;
}

inline void store_rows(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t panel,
                       TileBytes<float> const& sums) {
  std::size_t const column = panel * kLanes;
  for (std::size_t i = 0; i < rows; ++i) store_some(g.y[row + i] + column, load(sums.number[i]), g.n - column);
}

template <int T>
void start_sums(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t panel) {
  if (!g.continues) return zero_tile<T>();
  std::size_t const column = panel * kLanes;
  TileBytes<float> sums{};
  for (std::size_t i = 0; i < rows; ++i) store(sums.number[i], load_some(g.y[row + i] + column, g.n - column));
  load_tile<T>(&sums);
}

// f.operator()<0>() … f.operator()<N - 1>()
template <std::size_t N, class F>
void for_panels(F const& f) {
  [&]<int... J>(std::integer_sequence<int, J...>) {
    (f.template operator()<J>(), ...);
  }
  (std::make_integer_sequence<int, static_cast<int>(N)>());
}

// Sums over k in steps of 32, as add_bf16_products() has them. So a row's bits are others than vdpbf16ps gives, and
// there are tiles for every number of rows, one too. Sums go on from where g.continues left them if that was whole
// steps.
struct TilesBf16 {
  template <std::size_t NP>
  static void block(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t panel) {
    constexpr std::size_t kStep = kTileRowBytes / sizeof(std::uint16_t);
    std::size_t const panel_bytes = (g.k + 1) / 2 * 2 * kLanes * sizeof(std::uint16_t);
    TileBytes<std::uint16_t> x{};
    TileBytes<std::byte> room;
    for_panels<NP>([&]<int J>() { start_sums<J>(g, row, rows, panel + J); });
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
      std::size_t const begin = k * kLanes * sizeof(std::uint16_t);
      for_panels<NP>([&]<int J>() {
        constexpr int kB = kFirstTileB + J % 3;
        load_tile<kB>(whole_tile(g.panels + (panel + J) * panel_bytes + begin, panel_bytes - begin, room));
        add_bf16_products<J, kTileA, kB>();
      });
    }
    for_panels<NP>([&]<int J>() {
      TileBytes<float> sums;
      store_tile<J>(&sums);
      store_rows(g, row, rows, panel + J, sums);
    });
  }
};

// The bits of GemmInt8, and rows as that takes them.
struct TilesInt8 {
  template <std::size_t NP>
  static void block(GemmPart const& g, std::size_t row, std::size_t rows, std::size_t panel) {
    constexpr std::size_t kStep = kTileRowBytes;
    TileBytes<std::int8_t> x{};
    TileBytes<std::byte> room;
    TileBytes<float> sums[NP] = {};
    for (std::size_t group = 0; group < int8_groups(g.k); ++group) {
      std::size_t const numbers = std::min(kInt8Group, g.k - group * kInt8Group);
      std::size_t const bytes = (numbers + kInt8StepK - 1) / kInt8StepK * kInt8StepBytes;
      auto const block_of = [&](std::size_t j) {
        return g.panels + (panel + j) * int8_panel_bytes(g.k) + group * kInt8BlockBytes;
      };
      auto const row_of = [&](std::size_t i) -> QuantisedGroup const& {
        return static_cast<QuantisedGroup const*>(g.x[row + i])[group];
      };
      for_panels<NP>([]<int J>() { zero_tile<J>(); });
      for (std::size_t k = 0; k < numbers; k += kStep) {
        for (std::size_t i = 0; i < rows; ++i) std::memcpy(x.number[i], row_of(i).x + k, kStep);
        load_tile<kTileA>(&x);
        std::size_t const begin = k / kInt8StepK * kInt8StepBytes;
        for_panels<NP>([&]<int J>() {
          constexpr int kB = kFirstTileB + J % 3;
          load_tile<kB>(whole_tile(block_of(J) + kInt8ScaleBytes + begin, bytes - begin, room));
          add_int8_products<J, kTileA, kB>();
        });
      }
      for_panels<NP>([&]<int J>() {
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
    for (std::size_t j = 0; j < NP; ++j) store_rows(g, row, rows, panel + j, sums[j]);
  }
};

template <class Tiles>
void gemm_on_tiles(GemmPart const& g) {
  TileRegisters const registers(std::min(g.m, kTileHeight));
  for (std::size_t row = 0; row < g.m; row += kTileHeight) {
    std::size_t const rows = std::min(kTileHeight, g.m - row);
    std::size_t panel = g.panel_begin;
    for (; panel + kPanelsOfTiles <= g.panel_end; panel += kPanelsOfTiles)
      Tiles::template block<kPanelsOfTiles>(g, row, rows, panel);
    for (; panel < g.panel_end; ++panel) Tiles::template block<1>(g, row, rows, panel);
  }
}

// See peak() in gemm_tile.h: as many multiply-adds by tiles.
template <class T, class Add>
float peak_on_tiles(std::size_t rounds, Add add) {
  // A product of tiles is 16 * 16 of vectors, of which a round has kAccumulators.
  std::size_t const times = rounds * kAccumulators / (kTileHeight * kLanes);
  TileRegisters const registers(kTileHeight);
  TileBytes<T> numbers;
  for (auto& row : numbers.number)
    for (T& x : row) x = static_cast<T>(rounds % 5);
  for_panels<kPanelsOfTiles>([]<int J>() { zero_tile<J>(); });
  load_tile<kTileA>(&numbers);
  load_tile<kFirstTileB>(&numbers);
  for (std::size_t i = 0; i < times / kPanelsOfTiles; ++i) for_panels<kPanelsOfTiles>(add);
  float total = 0;
  for_panels<kPanelsOfTiles>([&]<int J>() {
    TileBytes<float> sums;
    store_tile<J>(&sums);
    total += sums.number[0][0];
  });
  return total;
}

}  // namespace
}  // namespace expertmesh
