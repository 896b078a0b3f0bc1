// Products of whole numbers in AVX-512 with VNNI, over the Ints of vec_avx512.h.
#pragma once
#include "common/kernels/isa/vec_avx512.h"

namespace expertmesh {
namespace {

// ---- int8: see vec_scalar.h
using Int8Element = std::int8_t;
constexpr int kInt8WeightBias = 128;
struct Int8Weights {
  __m512i v;
};
struct Int8Row {
  __m512i v;
};

inline Int8Weights load_int8(std::byte const* p) {
  return {_mm512_loadu_si512(p)};
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {broadcast_four(x)};
}
inline Ints dot_int8(Ints acc, Int8Weights w, Int8Row row) {
  return {reinterpret_cast<Int32x16>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc.v), w.v, row.v))};
}
template <std::size_t N>
void arrange(std::int32_t const (&whole)[N], Int8Element* out) {
  static_assert(N % 16 == 0);
  for (std::size_t i = 0; i < N; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(_mm512_loadu_si512(whole + i)));
}

// ---- int4: see vec_scalar.h
struct Int4Weights {
  Int8Weights low, high;
};

inline Int4Weights load_int4(std::byte const* p) {
  __m512i const both = _mm512_loadu_si512(p);
  __m512i const half = _mm512_set1_epi8(15);
  return {{_mm512_and_si512(both, half)}, {_mm512_and_si512(_mm512_srli_epi16(both, 4), half)}};
}

}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/dots_int4_by_int8.h"
