// The tile registers of AMX. By inline assembly, since gcc 12's intrinsics do not say that they read memory, and take
// no number of a register that a template counts.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/kernels/isa/amx_shape.h"

namespace expertmesh {
namespace {

// Between making and destroying one the thread has eight tile registers, numbers 0 … 7, all of rows of 64 bytes: 0 … 4
// of `rows` rows, 5 … 7 of 16. Left configured they would make each switch of threads dearer.
class TileRegisters {
 public:
  explicit TileRegisters(std::size_t rows) {
    struct alignas(64) Palette {
      std::uint8_t id = 1;
      std::uint8_t start_row = 0;
      std::uint8_t zeros[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } palette;
    static_assert(sizeof palette == 64);
    for (std::size_t t = 0; t < 8; ++t) {
      palette.row_bytes[t] = kTileRowBytes;
      palette.rows[t] = static_cast<std::uint8_t>(t < 5 ? rows : kTileHeight);
    }
    asm volatile("ldtilecfg %0" ::"m"(palette));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(TileRegisters const&) = delete;
  TileRegisters& operator=(TileRegisters const&) = delete;
};

template <int T>
void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Rows of 64 bytes, from one to the next so many.
template <int T>
void load_tile(void const* rows, std::size_t stride = kTileRowBytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T) : "memory");
}
// One behind the other.
template <int T>
void store_tile(void* rows) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(kTileRowBytes), "i"(T) : "memory");
}
// C [rows][16] float += A [rows][32] bfloat16 x B [16 pairs][16][2] bfloat16. To an element are added, in one step, the
// sum of the products of the pairs' first numbers, in the order of the pairs, and that of their second ones. Each step
// is rounded to nearest even; denormals are 0.
template <int C, int A, int B>
void add_bf16_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// C [rows][16] int32 += A [rows][64] int8 x B [16 fours][16][4] uint8
template <int C, int A, int B>
void add_int8_products() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace expertmesh
