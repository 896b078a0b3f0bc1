// What the kernels ask of tensor cores, and of copies to shared memory that run beside the arithmetic; and how a
// float32 becomes numbers that tensor cores take.
#pragma once
#include "common/kernels/cuda/numbers.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

// d [16,8] += a [16,16] b [16,8] by all lanes of a warp: bf16 times bf16, which is exact, summed in float32. Lane 4 g +
// t has (PTX ISA, mma.m16n8k16; two bf16 of a word are neighbours in k)
//   a: row g, k 2t; row g + 8, k 2t; row g, k 2t + 8; row g + 8, k 2t + 8
//   b: k 2t, column g; k 2t + 8, column g
//   d: row g, columns 2t and 2t + 1; row g + 8, columns 2t and 2t + 1
// An element of d depends on its row of a and its column of b alone.
__device__ inline void mma_16x8x16(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                   std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif !defined(__CUDACC__)
  mma_in_warp(d, {a0, a1, a2, a3}, {b0, b1});
#endif
}

// A row of either operand is read 16 bytes at a time: lane 4 g + t has unit t of a span of row g, and gives words 0 and
// 1 to the first mma of the span and words 2 and 3 to the second. So an mma has elements 8 t, 8 t + 1, 8 t + 2, 8 t + 3
// (or 4 more) of the span, for t = 0 … 3, in an order of its own, of both operands alike.
constexpr unsigned kSpan = 32;
constexpr unsigned kSpanUnits = kSpan / 8;

// Products of a span: d += 16 rows (the lower and the upper eight) with 8 others.
__device__ inline void multiply_span(Words4 const& low, Words4 const& high, Words4 const& x, float (&d)[4]) {
  mma_16x8x16(d, low.w[0], high.w[0], low.w[1], high.w[1], x.w[0], x.w[1]);
  mma_16x8x16(d, low.w[2], high.w[2], low.w[3], high.w[3], x.w[2], x.w[3]);
}

// Each half of a bfloat16 pair times that of another, rounded to nearest, as bfloat16; subnormal ones as well.
__device__ inline std::uint32_t two_products(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(0x80008000U));  // -0, which keeps a zero's sign
  return out;
#else
  return bf16_of_float(low_bf16(a) * low_bf16(b)) |
         static_cast<std::uint32_t>(bf16_of_float(high_bf16(a) * high_bf16(b))) << 16;
#endif
}

// 16 bytes into shared memory some time before wait_for_copies: from global memory, or zeros and no access to it.
__device__ inline void copy_ahead(Words4* shared, void const* global, bool zeros) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(zeros ? 0 : 16)
      : "memory");
#elif !defined(__CUDACC__)
  copy_later(shared, zeros ? nullptr : global, sizeof *shared);
#endif
}
// The same of a word.
__device__ inline void copy_word_ahead(std::uint32_t* shared, void const* global) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#elif !defined(__CUDACC__)
  copy_later(shared, global, sizeof *shared);
#endif
}
// What this thread has asked for since the last call is a group.
__device__ inline void end_copy_group() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  end_group_of_copies();
#endif
}
// Until all groups of this thread but the last kGroups are there.
template <unsigned kGroups>
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#elif !defined(__CUDACC__)
  wait_for_copies_but(kGroups);
#endif
}

// ---- float32 as bf16 terms
constexpr unsigned kExactTerms = 3;

// The upper half of x is its first term; x becomes what is left of it. Cut off and not rounded, so that 24 bits are
// three terms of 8, of one sign, and none is infinite unless x is. (What lies below 2^-133, bf16's smallest, is lost.)
// Of an infinity or a NaN nothing is left.
__device__ inline std::uint32_t take_term(float& x) {
  std::uint32_t const bits = bits_of_float(x);
  std::uint32_t const magnitude = bits & 0x7fffffffU;
  x = magnitude < 0x7f800000U ? x - float_of_bits(bits & 0xffff0000U) : 0.0F;
  return magnitude > 0x7f800000U ? bits >> 16 | 0x40U : bits >> 16;
}

// Eight neighbours as `terms` units of 128 bits, the largest first, each `apart` units behind the one before. One term
// is x rounded; kExactTerms are x.
__device__ inline void write_terms(float (&x)[8], unsigned terms, Words4* to, unsigned apart) {
  if (terms == 1) {
    Words4 unit;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
      unit.w[i] = bf16_of_float(x[2 * i]) | static_cast<std::uint32_t>(bf16_of_float(x[2 * i + 1])) << 16;
    *to = unit;
    return;
  }
#pragma unroll
  for (unsigned term = 0; term < kExactTerms; ++term) {
    Words4 unit;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      std::uint32_t const low = take_term(x[2 * i]);
      unit.w[i] = low | take_term(x[2 * i + 1]) << 16;
    }
    to[term * apart] = unit;
  }
}

// As bf16_of_float, `low` in the lower half.
__device__ inline std::uint32_t two_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  return bf16_of_float(low) | static_cast<std::uint32_t>(bf16_of_float(high)) << 16;
#endif
}
// x rounded to a first term; x becomes what is left of it, which is exact. What would round to infinity is cut off.
__device__ inline std::uint32_t take_rounded(float& x) {
  std::uint32_t const term = bf16_of_float(x);
  if ((term & 0x7f80U) == 0x7f80U) return take_term(x);
  x -= float_of_bf16(static_cast<std::uint16_t>(term));
  return term;
}
// The same of two numbers that do not round to infinity.
__device__ inline std::uint32_t take_two_rounded(float& low, float& high) {
  std::uint32_t const term = two_bf16(low, high);
  low -= low_bf16(term);
  high -= high_bf16(term);
  return term;
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
