// The formats of weights that tensor_rows.h multiplies. Each is a struct with
//   - kStorage: whose rows these are, as device_rows.h has them;
//   - kUnitSpans: the spans of which 16 bytes have a lane's numbers;
//   - kChunksAhead: of a warp that streams, so that 64 KB are on their way in two blocks, or 32;
//   - kHasScales: a word of them for each chunk of a row;
//   - kRounded: x is always rounded to bfloat16, one term;
//   - Codes: what a lane has of a span of a row;
//   - numbers<kPlain>(codes, span, scales): as bfloat16, exactly. span: of the chunk. kPlain: only where the scales
//     are_plain(), to the same bits, and sooner if it kHasPlainScales;
//   - scaled(sum, scales): the sum of a chunk of a row, from that of its numbers().
#pragma once
#include "common/config/weight_format.h"
#include "common/kernels/cuda/tensor_core.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

struct Bf16Weights {
  static constexpr DType kStorage = DType::bf16;
  static constexpr unsigned kUnitSpans = 1;
  static constexpr unsigned kChunksAhead = 1;
  static constexpr bool kHasScales = false;
  static constexpr bool kRounded = false;
  static constexpr bool kHasPlainScales = false;
  using Codes = Words4;
  template <bool kPlain>
  static __device__ Words4 numbers(Codes const& codes, unsigned /*span*/, std::uint32_t /*scales*/) {
    return codes;
  }
  static __device__ float scaled(float sum, std::uint32_t /*scales*/) { return sum; }
};

// A code's bits where bfloat16 has sign, exponent and mantissa are 2^-120 of the number, subnormal ones too.
struct Fp8Weights {
  static constexpr DType kStorage = DType::f8_e4m3;
  static constexpr unsigned kUnitSpans = 2;
  static constexpr unsigned kChunksAhead = 2;
  static constexpr bool kHasScales = true;
  static constexpr bool kRounded = true;
  static constexpr bool kHasPlainScales = false;
  struct alignas(8) Codes {
    std::uint32_t w[2];
  };
  // Of a code that is NaN, some number: the chunk's scale tells of it.
  template <bool kPlain>
  static __device__ Words4 numbers(Codes const& codes, unsigned /*span*/, std::uint32_t /*scales*/) {
    Words4 out;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      std::uint32_t const upper = i % 2 == 0 ? codes.w[i / 2] : codes.w[i / 2] << 8;
      out.w[i] = two_products((upper & 0x80008000U) | (upper >> 4 & 0x07f007f0U), kTwo120);
    }
    return out;
  }
  static __device__ float scaled(float sum, std::uint32_t scale) {
    return sum * float_of_bits((scale & 0x80000000U) != 0 ? 0x7fffffffU : scale);
  }

 private:
  static constexpr std::uint32_t kTwo120 = 0x7b807b80U;
};

// A code's bits where bfloat16 has them are 2^-126 of the number.
struct Mxfp4Weights {
  static constexpr DType kStorage = DType::f4_e2m1;
  static constexpr unsigned kUnitSpans = 4;
  static constexpr unsigned kChunksAhead = 2;
  static constexpr bool kHasScales = true;
  static constexpr bool kRounded = true;
  static constexpr bool kHasPlainScales = true;
  struct Codes {
    std::uint32_t w;
  };
  // All below 2: 2^126 times such a scale is a bfloat16.
  static __device__ bool are_plain(std::uint32_t scales) { return (scales & 0x80808080U) == 0; }
  template <bool kPlain>
  static __device__ Words4 numbers(Codes const& codes, unsigned span, std::uint32_t scales) {
    constexpr std::uint32_t kSigns = 0x80008000U;
    constexpr std::uint32_t kOthers = 0x01c001c0U;
    std::uint32_t const w = codes.w;
    std::uint32_t const scale = scales >> span * 8 & 0xffU;
    Words4 out{{w & (kSigns | kOthers), w << 3 & (kSigns | kOthers), (w << 1 & kSigns) | (w << 6 & kOthers),
                (w << 2 & kSigns) | (w >> 3 & kOthers)}};
    // The scale is 2^(scale - 127); of 0 it is subnormal, and 255 is NaN.
    std::uint32_t const both_halves = 0x00010001U;
    std::uint32_t const factor = kPlain ? (scale + 126) << 7 : scale << 7 | (((scale + 1) & 0xfeU) == 0 ? 0x40U : 0U);
#pragma unroll
    for (std::uint32_t& two : out.w) {
      if (!kPlain) two = two_products(two, kTwo126);
      two = two_products(two, factor * both_halves);
    }
    return out;
  }
  static __device__ float scaled(float sum, std::uint32_t /*scales*/) {
    return sum;
  }

 private:
  static constexpr std::uint32_t kTwo126 = 0x7e807e80U;
};

// f(format): of one of these.
template <class F>
void with_format(DType storage, F const& f) {
  if (storage == DType::f8_e4m3) return f(Fp8Weights{});
  if (storage == DType::f4_e2m1) return f(Mxfp4Weights{});
  f(Bf16Weights{});
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
