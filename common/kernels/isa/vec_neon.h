// 16 floats in four NEON registers.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRows = 4;      // of a GEMM's register tile
constexpr std::size_t kFewRows = 4;       // as many are one tile
constexpr std::size_t kAccumulators = 4;  // vectors in it: of 4 registers each; 32 registers
constexpr std::size_t kAttendRows = 4;    // of attention's register tile
constexpr std::size_t kAttendSums = 4;    // vectors in it

struct Vec {
  float32x4_t q[4];
};

template <class F>
Vec each(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Vec broadcast(float x) {
  float32x4_t const all = vdupq_n_f32(x);
  return {{all, all, all, all}};
}
inline Vec zero() {
  return broadcast(0.0F);
}
inline Vec load(float const* p) {
  return each([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, Vec const& a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
inline Vec load(std::uint16_t const* p) {
  return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline Vec load(std::int8_t const* p) {
  int8x16_t const bytes = vld1q_s8(p);
  int16x8_t const low = vmovl_s8(vget_low_s8(bytes));
  int16x8_t const high = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
inline Vec fma(Vec const& a, Vec const& b, Vec const& c) {
  return each([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
inline Vec operator+(Vec const& a, Vec const& b) {
  return each([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
inline Vec operator-(Vec const& a, Vec const& b) {
  return each([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
inline Vec operator*(Vec const& a, Vec const& b) {
  return each([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
inline Vec operator/(Vec const& a, Vec const& b) {
  return each([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
// Not vminq and vmaxq, which give NaN where either is NaN: see vec_scalar.h.
inline float32x4_t max(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
inline Vec min(Vec const& a, Vec const& b) {
  return each([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
}
inline Vec max(Vec const& a, Vec const& b) {
  return each([&](int i) { return max(a.q[i], b.q[i]); });
}
inline Vec round_to_int(Vec const& a) {
  return each([&](int i) { return vrndnq_f32(a.q[i]); });
}
inline Vec power_of_two(Vec const& n) {  // NaN becomes 0
  return each([&](int i) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23));
  });
}
inline Vec zero_below(Vec const& x0, float bound, Vec const& x) {
  return each([&](int i) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.q[i]), vcltq_f32(x0.q[i], vdupq_n_f32(bound))));
  });
}
inline float sum_lanes(Vec const& v) {
  float32x4_t const four = vaddq_f32(vaddq_f32(v.q[0], v.q[2]), vaddq_f32(v.q[1], v.q[3]));
  float32x2_t const two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float max_lanes(Vec const& v) {
  float32x4_t largest = vdupq_n_f32(-__builtin_huge_valf());
  for (float32x4_t const q : v.q) largest = max(q, largest);  // NaN is passed over
  return vmaxvq_f32(largest);
}
// Row i of the tile becomes column i.
inline void transpose(Vec (&tile)[16]) {
  Vec out[16];
  for (int r = 0; r < 4; ++r)      // rows 4r …
    for (int c = 0; c < 4; ++c) {  // columns 4c …
      float32x4x2_t const first = vtrnq_f32(tile[4 * r].q[c], tile[4 * r + 1].q[c]);
      float32x4x2_t const second = vtrnq_f32(tile[4 * r + 2].q[c], tile[4 * r + 3].q[c]);
      out[4 * c].q[r] = vcombine_f32(vget_low_f32(first.val[0]), vget_low_f32(second.val[0]));
      out[4 * c + 1].q[r] = vcombine_f32(vget_low_f32(first.val[1]), vget_low_f32(second.val[1]));
      out[4 * c + 2].q[r] = vcombine_f32(vget_high_f32(first.val[0]), vget_high_f32(second.val[0]));
      out[4 * c + 3].q[r] = vcombine_f32(vget_high_f32(first.val[1]), vget_high_f32(second.val[1]));
    }
  for (int i = 0; i < 16; ++i) tile[i] = out[i];
}

// ---- 16 int32 sums
struct Ints {
  int32x4_t q[4];
};

inline Ints broadcast(std::int32_t x) {
  int32x4_t const all = vdupq_n_s32(x);
  return {{all, all, all, all}};
}
inline Vec to_floats(Ints const& a) {
  return each([&](int i) { return vcvtq_f32_s32(a.q[i]); });
}
inline Vec to_floats(Vec const& a) {
  return a;
}

}  // namespace
}  // namespace expertmesh
