// Products of bfloat16 and of whole numbers in AVX-512 without BF16 and VNNI, over vec_avx512.h.
#pragma once
#include "common/kernels/isa/vec_avx512.h"

namespace expertmesh {
namespace {

inline Vec dot_bf16(Vec acc, std::uint16_t const* w, std::uint32_t x) {
  __m512i const pairs = _mm512_loadu_si512(w);
  __m512 const even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  __m512 const odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  __m512 const x0 = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x << 16)));
  __m512 const x1 = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x & 0xffff0000U)));
  return {_mm512_fmadd_ps(odd, x1, _mm512_fmadd_ps(even, x0, acc.v))};
}

// ---- int8: as in dots_avx2.h
using Int8Element = std::int16_t;
constexpr int kInt8WeightBias = 128;
struct Int8Weights {
  __m512i even, odd;
};
struct Int8Row {
  __m512i even, odd;
};

inline Int8Weights load_int8(std::byte const* p) {
  __m512i const both = _mm512_loadu_si512(p);
  return {_mm512_and_si512(both, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(both, 8)};
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {broadcast_four(x), broadcast_four(x + 2)};
}
inline Ints dot_int8(Ints acc, Int8Weights const& w, Int8Row const& row) {
  acc.v += reinterpret_cast<Int32x16>(_mm512_madd_epi16(w.even, row.even));
  acc.v += reinterpret_cast<Int32x16>(_mm512_madd_epi16(w.odd, row.odd));
  return acc;
}
template <std::size_t N>
void arrange(std::int32_t const (&whole)[N], Int8Element* out) {
  static_assert(N % 4 == 0);
  for (std::size_t i = 0; i < N; i += 4)
    for (std::size_t j = 0; j < 4; ++j)  // 0, 2, 1, 3
      out[i + j] = static_cast<Int8Element>(whole[i + j / 2 + j % 2 * 2]);
}

// ---- int4: as in dots_avx2.h
// All four steps of a group together would need more registers than there are: a third less speed.
constexpr int kInt4StepsUnrolled = 1;
struct Int4Sums {
  __m512i v;
};
struct Int4Weights {
  __m512i first, second;
};
struct Int4Row {
  __m512i first, second;
};

inline Int4Sums first_int4_sums(std::int32_t /*start*/) {
  return {_mm512_setzero_si512()};
}
inline Int4Weights load_int4(std::byte const* p) {
  __m512i const both = _mm512_loadu_si512(p);
  __m512i const half = _mm512_set1_epi8(15);
  return {_mm512_and_si512(both, half), _mm512_and_si512(_mm512_srli_epi16(both, 4), half)};
}
inline Int4Row broadcast_int4(std::int8_t const* x) {
  return {broadcast_four(x), broadcast_four(x + 4)};
}
inline Int4Sums dot_int4(Int4Sums acc, Int4Weights const& w, Int4Row const& row) {
  __m512i const sum = _mm512_add_epi16(acc.v, _mm512_maddubs_epi16(w.first, row.first));
  return {_mm512_add_epi16(sum, _mm512_maddubs_epi16(w.second, row.second))};
}
inline Ints total(Int4Sums sums, std::int32_t start) {
  Ints out = broadcast(start);
  out.v += reinterpret_cast<Int32x16>(_mm512_madd_epi16(sums.v, _mm512_set1_epi16(1)));
  return out;
}

}  // namespace
}  // namespace expertmesh
