// 16 floats in two AVX2 registers. Included by one .cpp only, compiled with -mavx2 -mfma.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;      // of a GEMM's register tile
constexpr std::size_t kAccumulators = 4;  // vectors in it: of 2 registers each; 16 registers
constexpr std::size_t kAttendRows = 4;    // of attention's register tile
constexpr std::size_t kAttendSums = 4;    // vectors in it

struct Vec {
  __m256 low;
  __m256 high;
};

inline Vec zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline Vec broadcast(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec load(float const* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline __m256 widened(std::uint16_t const* p) {
  __m128i const bits = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(std::uint16_t const* p) {
  return {widened(p), widened(p + 8)};
}
inline __m256 widened(std::int8_t const* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(p))));
}
inline Vec load(std::int8_t const* p) {
  return {widened(p), widened(p + 8)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Vec round_to_int(Vec a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}
inline __m256 power_of_two(__m256 n) {
  __m256i const biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec power_of_two(Vec n) {
  return {power_of_two(n.low), power_of_two(n.high)};
}
inline Vec zero_below(Vec x0, float bound, Vec x) {
  __m256 const b = _mm256_set1_ps(bound);
  return {_mm256_and_ps(_mm256_cmp_ps(x0.low, b, _CMP_NLT_UQ), x.low),
          _mm256_and_ps(_mm256_cmp_ps(x0.high, b, _CMP_NLT_UQ), x.high)};
}
inline float sum_lanes(Vec v) {
  __m256 const half = _mm256_add_ps(v.low, v.high);
  __m128 const four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 const two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Vec v) {
  __m256 const least = _mm256_set1_ps(-__builtin_huge_valf());  // in the place of NaN
  __m256 const half = _mm256_max_ps(_mm256_max_ps(v.low, least), _mm256_max_ps(v.high, least));
  __m128 const four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 const two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// Row i of the tile becomes column i: pairs of floats, then of doubles, then of 128-bit lanes change places.
inline void transpose(__m256 (&tile)[8]) {
  __m256 a[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(tile[i], tile[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(tile[i], tile[i + 1]);
  }
  __m256 b[8];  // b[4g + c], lane l: column 4l + c of the rows 4g … 4g + 3
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      __m256d const first = _mm256_castps_pd(a[i + j]);
      __m256d const second = _mm256_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(first, second));
      b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(first, second));
    }
  for (int c = 0; c < 4; ++c) {
    tile[c] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x20);
    tile[c + 4] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x31);
  }
}
inline void transpose(Vec (&tile)[16]) {
  __m256 quarter[2][2][8];  // [rows 8r …][columns 8c …]
  for (int i = 0; i < 16; ++i) {
    quarter[i / 8][0][i % 8] = tile[i].low;
    quarter[i / 8][1][i % 8] = tile[i].high;
  }
  for (auto& row : quarter)
    for (auto& q : row) transpose(q);
  for (int i = 0; i < 16; ++i) tile[i] = {quarter[0][i / 8][i % 8], quarter[1][i / 8][i % 8]};
}
inline __m256 dot_bf16(__m256 acc, std::uint16_t const* w, __m256 x0, __m256 x1) {
  __m256i const pairs = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(w));
  __m256 const even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  __m256 const odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  return _mm256_fmadd_ps(odd, x1, _mm256_fmadd_ps(even, x0, acc));
}
inline Vec dot_bf16(Vec acc, std::uint16_t const* w, std::uint32_t x) {
  __m256 const x0 = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(x << 16)));
  __m256 const x1 = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(x & 0xffff0000U)));
  return {dot_bf16(acc.low, w, x0, x1), dot_bf16(acc.high, w + 16, x0, x1)};
}

// ---- int8: see vec_scalar.h. There is no product of bytes here that cannot overflow 16 bits: the bytes are widened,
// the weights' even and odd ones apart, and the row's four numbers x lie as the pairs (x[0], x[2]) and (x[1], x[3]).
using Int32x8 = std::int32_t __attribute__((vector_size(32)));
struct Ints {
  Int32x8 low;
  Int32x8 high;
};
using Int8Element = std::int16_t;
struct Int8Weights {
  __m256i low_even, low_odd, high_even, high_odd;
};
struct Int8Row {
  __m256i even, odd;
};

inline Ints broadcast(std::int32_t x) {
  Int32x8 const all = reinterpret_cast<Int32x8>(_mm256_set1_epi32(x));
  return {all, all};
}
inline Vec to_floats(Ints a) {
  return {_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(a.low)), _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(a.high))};
}
inline Vec to_floats(Vec a) {
  return a;
}
inline Int8Weights load_int8(std::byte const* p) {
  __m256i const low = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
  __m256i const high = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p + 32));
  __m256i const bytes = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(low, bytes), _mm256_srli_epi16(low, 8), _mm256_and_si256(high, bytes),
          _mm256_srli_epi16(high, 8)};
}
inline __m256i broadcast_pair(Int8Element const* x) {
  std::int32_t pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  return _mm256_set1_epi32(pair);
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {broadcast_pair(x), broadcast_pair(x + 2)};
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
inline __m256i broadcast_four(std::int8_t const* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
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
