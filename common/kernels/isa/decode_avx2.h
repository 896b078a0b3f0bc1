// MXFP4 and FP8 as bfloat16 in AVX2: see decode_scalar.h. Included by one .cpp only.
#pragma once
#include <immintrin.h>

#include "common/kernels/fp8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

// Sixteen words of four codes: the lowest code of each as bfloat16. Both bytes of a number come from tables by code.
inline __m256i e2m1_as_bf16(__m256i words, __m256i added) {
  __m256i const high_bytes =
      _mm256_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64, 0, 0x3f,
                       0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64);
  __m256i const low_bytes = _mm256_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64, 0, 0,
                                             -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64);
  __m256i const codes = _mm256_and_si256(words, _mm256_set1_epi16(15));
  __m256i const high = _mm256_slli_epi16(_mm256_shuffle_epi8(high_bytes, codes), 8);
  __m256i const low = _mm256_shuffle_epi8(low_bytes, codes);  // the codes' own high bytes are 0, and so is entry 0
  __m256i const zero = _mm256_cmpeq_epi16(_mm256_and_si256(words, _mm256_set1_epi16(7)), _mm256_setzero_si256());
  return _mm256_add_epi16(_mm256_or_si256(high, low), _mm256_andnot_si256(zero, added));
}

inline void decode_mxfp4(Mxfp4Group const& in, std::uint16_t* out) {
  __m128i const scales = _mm_loadu_si128(reinterpret_cast<__m128i const*>(in.scales));
  __m128i const held = _mm_min_epu8(_mm_max_epu8(scales, _mm_set1_epi8(kMxfp4LeastPlain)),
                                    _mm_set1_epi8(static_cast<char>(kMxfp4MostPlain)));
  if (_mm_movemask_epi8(_mm_cmpeq_epi8(scales, held)) != 0xffff) return decode_mxfp4_exactly(in, out);
  // What scales add to the exponents of both words of a column.
  auto const added = [](__m128i eight) {
    __m256i const of_columns = _mm256_cvtepu8_epi32(eight);
    __m256i const both = _mm256_or_si256(of_columns, _mm256_slli_epi32(of_columns, 16));
    return _mm256_slli_epi16(_mm256_sub_epi16(both, _mm256_set1_epi16(kMxfp4One)), 7);
  };
  __m256i const of_half[2] = {added(scales), added(_mm_srli_si128(scales, 8))};
  for (std::size_t step = 0; step < kMxfp4GroupK / kMxfp4StepK; ++step)
    for (std::size_t half = 0; half < 2; ++half) {
      std::byte const* const at = in.words + step * kMxfp4StepBytes + half * sizeof(__m256i);
      __m256i words = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(at));
      for (std::size_t pair = 0; pair < kMxfp4StepK / 2; ++pair) {
        std::uint16_t* const to = out + (step * kMxfp4StepK / 2 + pair) * 2 * kPanelColumns + half * kLanes;
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), e2m1_as_bf16(words, of_half[half]));
        words = _mm256_srli_epi16(words, 4);
      }
    }
}

// To nearest even, in the low halves; of numbers that are not NaN.
inline __m256i rounded_to_bf16(__m256 x) {
  __m256i const bits = _mm256_castps_si256(x);
  __m256i const last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, last), _mm256_set1_epi32(0x7fff)), 16);
}

// As in AVX-512: a code shifted into a half is 2^-8 of its number, subnormal ones too.
inline void decode_fp8(Fp8Steps const& in, std::uint16_t* out) {
  for (std::size_t half = 0; half < 2; ++half) {  // of the columns
    __m256 const scales = _mm256_loadu_ps(reinterpret_cast<float const*>(in.scales + 8 * half));
    if (_mm256_movemask_ps(scales) != 0) return decode_fp8_exactly(in, out);
    __m256 const times = _mm256_mul_ps(scales, _mm256_set1_ps(0x1p8F));
    __m256i const twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    __m256 const low = _mm256_permutevar8x32_ps(times, twice);
    __m256 const high = _mm256_permutevar8x32_ps(times, _mm256_add_epi32(twice, _mm256_set1_epi32(4)));
    std::uint16_t* to = out + half * kLanes;
    auto const decode_pair = [&](__m256i shifted) {  // codes in the high bytes
      __m256i const halves =
          _mm256_and_si256(_mm256_srai_epi16(shifted, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
      __m256 const first = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), low);
      __m256 const second = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), high);
      __m256i const mixed = _mm256_packus_epi32(rounded_to_bf16(first), rounded_to_bf16(second));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
      to += 2 * kPanelColumns;
    };
    for (std::size_t step = 0; step < in.steps; ++step) {
      auto const* const at = in.codes + step * kFp8StepBytes + half * sizeof(__m256i);
      __m256i const codes = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(at));
      decode_pair(_mm256_unpacklo_epi8(_mm256_setzero_si256(), codes));
      decode_pair(_mm256_unpackhi_epi8(_mm256_setzero_si256(), codes));
    }
  }
}

}  // namespace
}  // namespace expertmesh
