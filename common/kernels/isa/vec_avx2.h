// 16 floats in two AVX2 registers. Included by one .cpp only, compiled with -mavx2 -mfma.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;      // of a GEMM's register tile
constexpr std::size_t kFewRows = 4;       // as many are one tile
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

// ---- 16 int32 sums
using Int32x8 = std::int32_t __attribute__((vector_size(32)));
struct Ints {
  Int32x8 low;
  Int32x8 high;
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
// Four bytes of a row.
inline __m256i broadcast_four(void const* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace expertmesh
