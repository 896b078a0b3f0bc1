// The GEMMs of weights that have fewer bits than the bfloat16 numbers they are: a strip of a few panels and a stretch
// of K becomes bfloat16 in the nearest cache and meets all rows there, as bfloat16 weights do. The sums lie in y from
// one stretch to the next, so that they have the bits of bfloat16 weights. Over the ISA's decode functions, included
// before.
#pragma once
#include "common/kernels/fp8_panels.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

constexpr std::size_t kStripPanels = 4;
constexpr std::size_t kStripRows = 64;  // that meet a strip before the next is made
// Of K: where a register tile has all rows, decoding and multiplying overlap if a stretch is short.
constexpr std::size_t kShortStretch = 32;
constexpr std::size_t kLongStretch = 128;

struct Mxfp4Codes {
  static constexpr std::size_t kAheadFrom = 3;
  static std::size_t panel_bytes(GemmPart const& g) { return mxfp4_panel_bytes(g.k); }
  static std::size_t in_one_piece(GemmPart const& /*g*/, std::size_t /*k*/, std::size_t stretch) { return stretch; }
  static void decode(GemmPart const& /*g*/, std::byte const* panel, std::size_t k, std::size_t count,
                     std::uint16_t* out) {
    for (std::size_t group = k / kMxfp4GroupK; group < (k + count) / kMxfp4GroupK;
         ++group, out += kMxfp4GroupK * kLanes)
      decode_mxfp4(panel + group * kMxfp4GroupBytes, out);
  }
};
static_assert(kShortStretch % kMxfp4GroupK == 0 && kLongStretch % kMxfp4GroupK == 0);

struct Fp8Codes {
  static constexpr std::size_t kAheadFrom = 3;
  static std::size_t panel_bytes(GemmPart const& g) { return fp8_panel_bytes(g.k, g.group); }
  static std::size_t in_one_piece(GemmPart const& g, std::size_t k, std::size_t stretch) {
    std::size_t const of_group = g.group - k % g.group;
    return of_group < stretch ? of_group : stretch;
  }
  static void decode(GemmPart const& g, std::byte const* panel, std::size_t k, std::size_t count, std::uint16_t* out) {
    decode_fp8(fp8_pairs(panel, g.group, k, count), out);
    clear_padding(count, out);
  }
};

// Rows [row, row + m) of the part; m: at most kStripRows.
template <class Codes>
void gemm_coded_rows(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t m) {
  alignas(kLineBytes) std::uint16_t strip[kStripPanels * kLongStretch * kLanes];
  std::size_t const stretch = m <= kTileRows ? kShortStretch : kLongStretch;
  void const* x[kStripRows];
  float* y[kStripRows];
  for (std::size_t panel = g.panel_begin; panel < g.panel_end; panel += kStripPanels) {
    std::size_t const panels = g.panel_end - panel < kStripPanels ? g.panel_end - panel : kStripPanels;
    for (std::size_t i = 0; i < m; ++i) y[i] = g.y[row + i] + panel * kLanes;
    std::size_t count = 0;
    for (std::size_t k = 0; k < g.k; k += count) {
      count = Codes::in_one_piece(g, k, g.k - k < stretch ? g.k - k : stretch);
      std::size_t const in_strip = (count + 1) / 2 * 2 * kLanes;  // of a panel
      for (std::size_t j = 0; j < panels; ++j) {
        ahead.tick();
        Codes::decode(g, g.panels + (panel + j) * Codes::panel_bytes(g), k, count, strip + j * in_strip);
      }
      for (std::size_t i = 0; i < m; ++i) x[i] = static_cast<std::uint16_t const*>(g.x[row + i]) + k;
      gemm<GemmBf16>({.x = x,
                      .y = y,
                      .m = m,
                      .n = g.n - panel * kLanes,
                      .k = count,
                      .panels = reinterpret_cast<std::byte const*>(strip),
                      .panel_begin = 0,
                      .panel_end = panels,
                      .continues = k != 0});
    }
  }
}

template <class Codes>
void gemm_coded(GemmPart const& g) {
  Ahead ahead;
  if (g.m >= Codes::kAheadFrom) {
    std::size_t const stretch = g.m <= kTileRows ? kShortStretch : kLongStretch;
    std::size_t const ticks =
        (g.panel_end - g.panel_begin) * ((g.k + stretch - 1) / stretch) * ((g.m + kStripRows - 1) / kStripRows);
    ahead = spread(g, ticks);
  }
  for (std::size_t row = 0; row < g.m; row += kStripRows)
    gemm_coded_rows<Codes>(g, ahead, row, g.m - row < kStripRows ? g.m - row : kStripRows);
}

}  // namespace
}  // namespace expertmesh
