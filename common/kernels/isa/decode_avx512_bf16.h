// MXFP4 and FP8 as bfloat16 in AVX-512: see decode_scalar.h. Included by one .cpp only.
#pragma once
#include <immintrin.h>

#include "common/kernels/fp8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

// The numbers of the codes 0 … 15, twice: vpermw looks at five bits, of which the highest belongs to the next code.
inline __m512i e2m1_as_bf16() {
  __m256i const once = _mm256_setr_epi16(
      0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, static_cast<short>(0x8000), static_cast<short>(0xbf00),
      static_cast<short>(0xbf80), static_cast<short>(0xbfc0), static_cast<short>(0xc000), static_cast<short>(0xc040),
      static_cast<short>(0xc080), static_cast<short>(0xc0c0));
  return _mm512_broadcast_i64x4(once);
}

inline void decode_mxfp4(Mxfp4Group const& in, std::uint16_t* out) {
  __m128i const scales = _mm_loadu_si128(reinterpret_cast<__m128i const*>(in.scales));
  __m128i const above = _mm_sub_epi8(scales, _mm_set1_epi8(kMxfp4LeastPlain));
  if (_mm_cmpgt_epu8_mask(above, _mm_set1_epi8(static_cast<char>(kMxfp4MostPlain - kMxfp4LeastPlain))) != 0)
    return decode_mxfp4_exactly(in, out);
  // What scales add to the exponents of both words of a column.
  __m512i const of_columns = _mm512_cvtepu8_epi32(scales);
  __m512i const both = _mm512_or_si512(of_columns, _mm512_slli_epi32(of_columns, 16));
  __m512i const added = _mm512_slli_epi16(_mm512_sub_epi16(both, _mm512_set1_epi16(kMxfp4One)), 7);
  __m512i const table = e2m1_as_bf16();
  __m512i const magnitude = _mm512_set1_epi16(7);
  for (std::size_t step = 0; step < kMxfp4GroupK / kMxfp4StepK; ++step) {
    __m512i words = _mm512_loadu_si512(in.words + step * kMxfp4StepBytes);
    for (std::size_t pair = 0; pair < kMxfp4StepK / 2; ++pair) {
      __m512i const one = _mm512_permutexvar_epi16(words, table);
      __mmask32 const not_zero = _mm512_test_epi16_mask(words, magnitude);
      _mm512_store_si512(out, _mm512_mask_add_epi16(one, not_zero, one, added));
      out += 2 * kPanelColumns;
      words = _mm512_srli_epi16(words, 4);
    }
  }
}

// A code shifted into a half is 2^-8 of its number, subnormal ones too; with 2^8 times the scale it has the loader's
// product.
inline void decode_fp8(Fp8Steps const& in, std::uint16_t* out) {
  __m512i const scales = _mm512_loadu_si512(in.scales);
  if (_mm512_movepi32_mask(scales) != 0) return decode_fp8_exactly(in, out);
  __m512 const times = _mm512_mul_ps(_mm512_castsi512_ps(scales), _mm512_set1_ps(0x1p8F));
  __m512i const twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  __m512 const low = _mm512_permutexvar_ps(twice, times);
  __m512 const high = _mm512_permutexvar_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), times);
  auto const decode_pair = [&](__m512i shifted) {  // codes in the high bytes
    __m512i const halves =
        _mm512_and_si512(_mm512_srai_epi16(shifted, 1), _mm512_set1_epi16(static_cast<short>(0xbf80)));
    __m512 const first = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), low);
    __m512 const second = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), high);
    __m512bh const rounded = _mm512_cvtne2ps_pbh(second, first);
    _mm512_store_si512(out, reinterpret_cast<__m512i const&>(rounded));
    out += 2 * kPanelColumns;
  };
  for (std::size_t step = 0; step < in.steps; ++step) {
    __m512i const codes = _mm512_loadu_si512(in.codes + step * kFp8StepBytes);
    decode_pair(_mm512_unpacklo_epi8(_mm512_setzero_si512(), codes));
    decode_pair(_mm512_unpackhi_epi8(_mm512_setzero_si512(), codes));
  }
}

}  // namespace
}  // namespace expertmesh
