// Products of bfloat16 and of whole numbers in NEON, over vec_neon.h. Where the compiler's flags say that there are
// instructions for the sum of four products of bytes (sdot), these are used.
#pragma once
#include "common/kernels/isa/vec_neon.h"

namespace expertmesh {
namespace {

// Widened: BFDOT rounds otherwise, and not alike on all processors.
inline Vec dot_bf16(Vec const& acc, std::uint16_t const* w, std::uint32_t x) {
  float32x4_t const x0 = vreinterpretq_f32_u32(vdupq_n_u32(x << 16));
  float32x4_t const x1 = vreinterpretq_f32_u32(vdupq_n_u32(x & 0xffff0000U));
  return each([&](int i) {
    uint32x4_t const pairs = vreinterpretq_u32_u16(vld1q_u16(w + 8 * i));
    float32x4_t const even = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    float32x4_t const odd = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000U)));
    return vfmaq_f32(vfmaq_f32(acc.q[i], even, x0), odd, x1);
  });
}

// ---- int8: see vec_scalar.h. Both operands are signed, so the weights lose their bias when they are loaded.
using Int8Element = std::int8_t;
constexpr int kInt8WeightBias = 0;
struct Int8Weights {
  int8x16_t q[4];
};
struct Int8Row {
  int8x16_t q;
};

inline Int8Weights load_int8(std::byte const* p) {
  auto const quarter = [&](int i) {
    uint8x16_t const biased = vld1q_u8(reinterpret_cast<std::uint8_t const*>(p) + 16 * i);
    return vreinterpretq_s8_u8(veorq_u8(biased, vdupq_n_u8(0x80)));
  };
  return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
inline Int8Row broadcast_int8(Int8Element const* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
}
inline int32x4_t dot_int8(int32x4_t acc, int8x16_t w, int8x16_t row) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, w, row);
#else
  // Sums of two products fit 16 bits: 2 * 127 * 127. Of each column two of them.
  int16x8_t const low = vmull_s8(vget_low_s8(w), vget_low_s8(row));
  int16x8_t const high = vmull_high_s8(w, row);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
inline Ints dot_int8(Ints const& acc, Int8Weights const& w, Int8Row const& row) {
  return {{dot_int8(acc.q[0], w.q[0], row.q), dot_int8(acc.q[1], w.q[1], row.q), dot_int8(acc.q[2], w.q[2], row.q),
           dot_int8(acc.q[3], w.q[3], row.q)}};
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
  Int4Weights w;
  for (int i = 0; i < 4; ++i) {
    uint8x16_t const both = vld1q_u8(reinterpret_cast<std::uint8_t const*>(p) + 16 * i);
    w.low.q[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    w.high.q[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
  return w;
}

}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/dots_int4_by_int8.h"
