// Weights that have fewer bits than the bfloat16 numbers they are, decoded a strip of K at a time. Over the ISA's
// decode functions, included before.
#pragma once
#include "common/kernels/fp8_panels.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

constexpr std::size_t kStretch = 32;  // of K, decoded at once
static_assert(kStretch == kMxfp4GroupK && kFp8GroupStep % kStretch == 0);

struct Mxfp4Codes {
  static std::size_t panel_bytes(GemmPart const& g) { return mxfp4_panel_bytes(g.k); }
  // Numbers [k, k + count) of a vector, a stretch or what is left of it, to [ceil(count/2)][16][2], from pair to pair
  // 2 kPanelColumns; what lies behind that, up to a stretch, is spoilt.
  static void decode(GemmPart const& g, std::size_t vector, std::size_t k, std::size_t /*count*/, std::uint16_t* out) {
    std::byte const* const panel = g.panels + vector / kPanelVectors * panel_bytes(g);
    decode_mxfp4(mxfp4_group(panel + k / kMxfp4GroupK * kMxfp4GroupBytes, vector % kPanelVectors), out);
  }
};

struct Fp8Codes {
  static std::size_t panel_bytes(GemmPart const& g) { return fp8_panel_bytes(g.k, g.group); }
  static void decode(GemmPart const& g, std::size_t vector, std::size_t k, std::size_t count, std::uint16_t* out) {
    std::byte const* const panel = g.panels + vector / kPanelVectors * panel_bytes(g);
    decode_fp8(fp8_steps(panel, g.group, vector % kPanelVectors, k, count), out);
    clear_padding(count, out);
  }
};

// Each number is decoded once for all rows; y has the sums from strip to strip, which kMultiply adds to.
constexpr std::size_t kStripPanels = 2;
constexpr std::size_t kStripK = 256;
constexpr std::size_t kStripRows = 64;

template <class Codes, void (*kMultiply)(GemmPart const&)>
void multiply_strips(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t m) {
  alignas(kLineBytes) std::uint16_t strip[kStripPanels * kStripK * kPanelColumns];
  void const* x[kStripRows];
  float* y[kStripRows];
  for (std::size_t panel = g.panel_begin; panel < g.panel_end; panel += kStripPanels) {
    std::size_t const panels = g.panel_end - panel < kStripPanels ? g.panel_end - panel : kStripPanels;
    for (std::size_t i = 0; i < m; ++i) y[i] = g.y[row + i] + panel * kPanelColumns;
    for (std::size_t begin = 0; begin < g.k; begin += kStripK) {
      std::size_t const count = g.k - begin < kStripK ? g.k - begin : kStripK;
      std::uint16_t* out = strip;
      for (std::size_t j = 0; j < panels; ++j)
        for (std::size_t k = 0; k < count; k += kStretch) {
          ahead.tick();
          std::size_t const some = count - k < kStretch ? count - k : kStretch;
          for (std::size_t v = 0; v < kPanelVectors; ++v)
            Codes::decode(g, (panel + j) * kPanelVectors + v, begin + k, some, out + v * 2 * kLanes);
          out += (some + 1) / 2 * 2 * kPanelColumns;
        }
      for (std::size_t i = 0; i < m; ++i) x[i] = static_cast<std::uint16_t const*>(g.x[row + i]) + begin;
      kMultiply({.x = x,
                 .y = y,
                 .m = m,
                 .n = g.n - panel * kPanelColumns,
                 .k = count,
                 .panels = reinterpret_cast<std::byte const*>(strip),
                 .panel_begin = 0,
                 .panel_end = panels,
                 .continues = begin != 0});
    }
  }
}

template <class Codes, void (*kMultiply)(GemmPart const&)>
void gemm_strips(GemmPart const& g) {
  std::size_t const row_blocks = (g.m + kStripRows - 1) / kStripRows;
  Ahead ahead = spread(g, row_blocks * (g.panel_end - g.panel_begin) * ((g.k + kStretch - 1) / kStretch));
  for (std::size_t row = 0; row < g.m; row += kStripRows)
    multiply_strips<Codes, kMultiply>(g, ahead, row, g.m - row < kStripRows ? g.m - row : kStripRows);
}

}  // namespace
}  // namespace expertmesh
