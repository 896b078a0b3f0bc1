// 16 floats in one AVX-512 register. Included by one .cpp only, compiled with the flags of AVX-512 F, BW, VL, DQ, BF16.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;       // of a GEMM's register tile
constexpr std::size_t kAccumulators = 16;  // vectors in it: of 1 register each; 32 registers

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
inline Vec dot_bf16(Vec acc, std::uint16_t const* w, std::uint32_t x) {
  __m512i const pairs = _mm512_loadu_si512(w);
  __m512i const both = _mm512_set1_epi32(static_cast<int>(x));
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh const&>(pairs), reinterpret_cast<__m512bh const&>(both))};
}

}  // namespace
}  // namespace expertmesh
