// Products of whole numbers in AVX-VNNI, over the Ints of vec_avx2.h.
#pragma once
#include "common/kernels/isa/vec_avx2.h"

namespace expertmesh {
namespace {

// ---- int8: see vec_scalar.h
using Int8Element = std::int8_t;
constexpr int kInt8WeightBias = 128;
struct Int8Weights {
  __m256i low, high;
};
struct Int8Row {
  __m256i v;
};

inline Int8Weights load_int8(std::byte const* p) {
  return {_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)),
          _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p + 32))};
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  return {broadcast_four(x)};
}
inline Int32x8 dot_int8(Int32x8 acc, __m256i w, __m256i row) {
  return reinterpret_cast<Int32x8>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(acc), w, row));
}
inline Ints dot_int8(Ints acc, Int8Weights const& w, Int8Row row) {
  return {dot_int8(acc.low, w.low, row.v), dot_int8(acc.high, w.high, row.v)};
}
template <std::size_t N>
void arrange(std::int32_t const (&whole)[N], Int8Element* out) {
  for (std::size_t i = 0; i < N; ++i) out[i] = static_cast<Int8Element>(whole[i]);
}

// ---- int4: see vec_scalar.h
struct Int4Weights {
  Int8Weights low, high;
};

inline Int4Weights load_int4(std::byte const* p) {
  Int8Weights const both = load_int8(p);
  __m256i const half = _mm256_set1_epi8(15);
  return {{_mm256_and_si256(both.low, half), _mm256_and_si256(both.high, half)},
          {_mm256_and_si256(_mm256_srli_epi16(both.low, 4), half),
           _mm256_and_si256(_mm256_srli_epi16(both.high, 4), half)}};
}

}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/dots_int4_by_int8.h"
