// 16 floats in one AVX-512 register. Included only by .cpps that are compiled with the flags of AVX-512 F, BW, VL and
// DQ, which every processor with AVX-512 has (but for the Xeon Phi).
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 8;       // of a GEMM's register tile, where there are more than kFewRows
constexpr std::size_t kFewRows = 12;       // as many are one tile: weights are read from memory once
constexpr std::size_t kAccumulators = 24;  // vectors in it: of 1 register each; 32 registers
constexpr std::size_t kAttendRows = 4;     // of attention's register tile
constexpr std::size_t kAttendSums = 16;    // vectors in it

struct Vec {
  __m512 v;
};

inline Vec zero() {
  return {_mm512_setzero_ps()};
}
inline Vec broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec load(float const* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
inline Vec load(std::uint16_t const* p) {
  __m256i const bits = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec load(std::int8_t const* p) {
  __m128i const bytes = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec round_to_int(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec power_of_two(Vec n) {
  __m512i const biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline Vec zero_below(Vec x0, float bound, Vec x) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x0.v, _mm512_set1_ps(bound), _CMP_NLT_UQ), x.v)};
}
inline float sum_lanes(Vec v) {
  __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  __m128 const four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 const two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Vec v) {
  __m512 const known = _mm512_max_ps(v.v, _mm512_set1_ps(-__builtin_huge_valf()));  // in the place of NaN
  __m256 const half = _mm256_max_ps(_mm512_castps512_ps256(known), _mm512_extractf32x8_ps(known, 1));
  __m128 const four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 const two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// Row i of the tile becomes column i: pairs of floats, then of doubles, then of 128-bit lanes change places.
inline void transpose(Vec (&tile)[16]) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(tile[i].v, tile[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(tile[i].v, tile[i + 1].v);
  }
  __m512d b[16];
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + j + 2]));
      b[i + 2 * j + 1] = _mm512_unpackhi_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + j + 2]));
    }
  // b[4g + c], lane l: column 4l + c of the rows 4g … 4g + 3.
  for (int c = 0; c < 4; ++c) {
    __m512 const g0 = _mm512_castpd_ps(b[c]);
    __m512 const g1 = _mm512_castpd_ps(b[c + 4]);
    __m512 const g2 = _mm512_castpd_ps(b[c + 8]);
    __m512 const g3 = _mm512_castpd_ps(b[c + 12]);
    __m512 const low_even = _mm512_shuffle_f32x4(g0, g1, 0x88);  // lanes 0 and 2 of each
    __m512 const low_odd = _mm512_shuffle_f32x4(g0, g1, 0xdd);   // lanes 1 and 3
    __m512 const high_even = _mm512_shuffle_f32x4(g2, g3, 0x88);
    __m512 const high_odd = _mm512_shuffle_f32x4(g2, g3, 0xdd);
    tile[c].v = _mm512_shuffle_f32x4(low_even, high_even, 0x88);
    tile[c + 4].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    tile[c + 8].v = _mm512_shuffle_f32x4(low_even, high_even, 0xdd);
    tile[c + 12].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

// ---- 16 int32 sums
// gcc copies an accumulator before and after vpdpbusd unless its type says that it holds int32.
using Int32x16 = std::int32_t __attribute__((vector_size(64)));
struct Ints {
  Int32x16 v;
};

inline Ints broadcast(std::int32_t x) {
  return {reinterpret_cast<Int32x16>(_mm512_set1_epi32(x))};
}
inline Vec to_floats(Ints a) {
  return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(a.v))};
}
inline Vec to_floats(Vec a) {
  return a;
}
// Four bytes of a row.
inline __m512i broadcast_four(void const* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

}  // namespace
}  // namespace expertmesh
