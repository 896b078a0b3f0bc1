// Products of whole numbers in AVX2, over the Ints of vec_avx2.h.
#pragma once
#include "common/kernels/isa/vec_avx2.h"

namespace expertmesh {
namespace {

// ---- int8: see vec_scalar.h. There is no product of bytes here that cannot overflow 16 bits: the bytes are widened,
// the weights' even and odd ones apart, and the row's four numbers x lie as the pairs (x[0], x[2]) and (x[1], x[3]).
using Int8Element = std::int16_t;
constexpr int kInt8WeightBias = 128;
struct Int8Weights {
  __m256i low_even, low_odd, high_even, high_odd;
};
struct Int8Row {
  __m256i even, odd;
};

inline Int8Weights load_int8(std::byte const* p) {
  __m256i const low = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
  __m256i const high = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p + 32));
  __m256i const bytes = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(low, bytes), _mm256_srli_epi16(low, 8), _mm256_and_si256(high, bytes),
          _mm256_srli_epi16(high, 8)};
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {broadcast_four(x), broadcast_four(x + 2)};
}
inline Int32x8 dot_int8(Int32x8 acc, __m256i even, __m256i odd, Int8Row const& row) {
  acc += reinterpret_cast<Int32x8>(_mm256_madd_epi16(even, row.even));
  return acc + reinterpret_cast<Int32x8>(_mm256_madd_epi16(odd, row.odd));
}
inline Ints dot_int8(Ints acc, Int8Weights const& w, Int8Row const& row) {
  return {dot_int8(acc.low, w.low_even, w.low_odd, row), dot_int8(acc.high, w.high_even, w.high_odd, row)};
}
template <std::size_t N>
void arrange(std::int32_t const (&whole)[N], Int8Element* out) {
  static_assert(N % 16 == 0);
  __m256i const pairs = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  for (std::size_t i = 0; i < N; i += 16) {
    auto const* const from = reinterpret_cast<__m256i const*>(whole + i);
    __m256i const halves = _mm256_packs_epi32(_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1));
    __m256i const ordered = _mm256_permute4x64_epi64(halves, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_shuffle_epi8(ordered, pairs));
  }
}

// ---- int4: see vec_scalar.h. Products of halves of bytes do not overflow 16 bits, nor do the sums of a group's four
// steps: 8 * 2 * 15 * 127 = 30480 in each of a column's two.
// All four steps of a group together would need more registers than there are: a third less speed.
constexpr int kInt4StepsUnrolled = 1;
struct Int4Sums {
  __m256i low, high;
};
struct Int4Weights {
  __m256i low_first, low_second, high_first, high_second;  // columns below and from 8 on; numbers 0 … 3 and 4 … 7
};
struct Int4Row {
  __m256i first, second;
};

inline Int4Sums first_int4_sums(std::int32_t /*start*/) {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline Int4Weights load_int4(std::byte const* p) {
  __m256i const low = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
  __m256i const high = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p + 32));
  __m256i const half = _mm256_set1_epi8(15);
  return {_mm256_and_si256(low, half), _mm256_and_si256(_mm256_srli_epi16(low, 4), half), _mm256_and_si256(high, half),
          _mm256_and_si256(_mm256_srli_epi16(high, 4), half)};
}
inline Int4Row broadcast_int4(std::int8_t const* x) {
  return {broadcast_four(x), broadcast_four(x + 4)};
}
inline __m256i dot_int4(__m256i acc, __m256i first, __m256i second, Int4Row const& row) {
  acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(first, row.first));
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(second, row.second));
}
inline Int4Sums dot_int4(Int4Sums acc, Int4Weights const& w, Int4Row const& row) {
  return {dot_int4(acc.low, w.low_first, w.low_second, row), dot_int4(acc.high, w.high_first, w.high_second, row)};
}
inline Ints total(Int4Sums sums, std::int32_t start) {
  Ints out = broadcast(start);
  __m256i const ones = _mm256_set1_epi16(1);
  out.low += reinterpret_cast<Int32x8>(_mm256_madd_epi16(sums.low, ones));
  out.high += reinterpret_cast<Int32x8>(_mm256_madd_epi16(sums.high, ones));
  return out;
}

}  // namespace
}  // namespace expertmesh
