// The kernels of AVX-512 BF16 with products by AMX. Compiled, and run with emulated tiles in a test; not yet run.
#include "common/kernels/isa/amx_tiles.h"
#include "common/kernels/isa/decode_avx512_bf16.h"
#include "common/kernels/isa/dots_avx512_vnni.h"
// What is above decides what the loops below compile to.
#include "common/kernels/isa/coded_strips_impl.h"
#include "common/kernels/isa/gemm_amx_impl.h"

namespace expertmesh {
namespace {

// For fewer rows a tile does not pay: by the processor's description, not measured.
constexpr std::size_t kLeastInt8Rows = 4;

void amx_int8(GemmPart const& g) {
  if (g.m < kLeastInt8Rows) return avx512_vnni_kernels().gemm_int8(g);
  gemm_on_tiles<TilesInt8>(g);
}

float amx_peak_bf16(std::size_t rounds) {
  return peak_on_tiles<std::uint16_t>(rounds, []<int J>() { add_bf16_products<J, kTileA, kFirstTileB>(); });
}
float amx_peak_int8(std::size_t rounds) {
  return peak_on_tiles<std::int8_t>(rounds, []<int J>() { add_int8_products<J, kTileA, kFirstTileB>(); });
}

}  // namespace

KernelTable const& amx_kernels() {
  static KernelTable const table = [] {
    KernelTable t = avx512_bf16_kernels();
    t.gemm_bf16 = gemm_on_tiles<TilesBf16>;
    t.gemm_mxfp4 = gemm_strips<Mxfp4Codes, gemm_on_tiles<TilesBf16>>;
    t.gemm_fp8 = gemm_strips<Fp8Codes, gemm_on_tiles<TilesBf16>>;
    t.gemm_int8 = amx_int8;
    t.peak_bf16 = amx_peak_bf16;
    t.peak_int8 = amx_peak_int8;
    return t;
  }();
  return table;
}
}  // namespace expertmesh
