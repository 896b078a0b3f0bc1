// The inner loops, written once over Vec (16 floats). Each ISA's .cpp includes its Vec and then this file; everything
// is in an anonymous namespace, so that no code compiled for one ISA can be linked into another.
#pragma once
#include <cstring>

#include "common/kernels/bf16_bits.h"
#include "common/kernels/isa/attend_impl.h"
#include "common/kernels/isa/gemm_bf16_impl.h"
#include "common/kernels/isa/gemm_coded_impl.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/isa/gemm_int4_impl.h"
#include "common/kernels/isa/gemm_int8_impl.h"
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// ---- rows
void round_bf16(float const* x, std::size_t n, std::uint16_t* out) {
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = bf16_bits(x[i]);
  }
}

void widen_bf16(std::uint16_t const* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; i += kLanes) store_some(out + i, load_some(x + i, n - i), n - i);
}

void rms_norm_row(float const* x, float const* weight, std::size_t n, float epsilon, float* out) {
  Vec squares = zero();
  for (std::size_t i = 0; i < n; i += kLanes) {
    Vec const v = load_some(x + i, n - i);
    squares = fma(v, v, squares);
  }
  float const mean = sum_lanes(squares) / static_cast<float>(n);
  Vec const scale = broadcast(1.0F / __builtin_sqrtf(mean + epsilon));
  for (std::size_t i = 0; i < n; i += kLanes) {
    Vec const scaled = load_some(x + i, n - i) * scale;
    store_some(out + i, weight ? scaled * load_some(weight + i, n - i) : scaled, n - i);
  }
}

void layer_norm_row(float const* x, float const* weight, float const* bias, std::size_t n, float epsilon, float* out) {
  Vec sum = zero();
  for (std::size_t i = 0; i < n; i += kLanes) sum = sum + load_some(x + i, n - i);
  Vec const mean = broadcast(sum_lanes(sum) / static_cast<float>(n));
  Vec squares = zero();
  for (std::size_t i = 0; i < n; i += kLanes) {
    float distance[kLanes];
    store(distance, load_some(x + i, n - i) - mean);
    Vec const v = load_some(distance, n - i);  // lanes beyond the row count as 0
    squares = fma(v, v, squares);
  }
  Vec const scale = broadcast(1.0F / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(n) + epsilon));
  for (std::size_t i = 0; i < n; i += kLanes) {
    Vec const scaled = (load_some(x + i, n - i) - mean) * scale * load_some(weight + i, n - i);
    store_some(out + i, bias ? scaled + load_some(bias + i, n - i) : scaled, n - i);
  }
}

// ---- activations
// erf(z), z >= 0, to 7e-8: z + z P(z^2) below 0.875, 1 - e^-Q(z) above; P and Q by minimax fits of erf(z)/z - 1 and of
// -ln(erfc(z)) up to 4, where float32 has reached 1.
Vec error_function(Vec const& z0) {
  Vec const z = min(broadcast(4.0F), z0);
  Vec const squared = z * z;
  Vec p = broadcast(-6.05591980e-04F);
  p = fma(p, squared, broadcast(5.00089070e-03F));
  p = fma(p, squared, broadcast(-2.67672446e-02F));
  p = fma(p, squared, broadcast(1.12816326e-01F));
  p = fma(p, squared, broadcast(-3.76124352e-01F));
  p = fma(p, squared, broadcast(1.28379107e-01F));
  Vec const small = fma(p, z, z);
  Vec q = broadcast(-1.99901246e-04F);
  q = fma(q, z, broadcast(3.08199483e-03F));
  q = fma(q, z, broadcast(-2.23810263e-02F));
  q = fma(q, z, broadcast(1.04250193e-01F));
  q = fma(q, z, broadcast(6.36820674e-01F));
  q = fma(q, z, broadcast(1.12788939e+00F));
  q = fma(q, z, broadcast(1.44212245e-04F));
  Vec const large = broadcast(1.0F) - exponential(zero() - q);
  constexpr float kBorder = 0.875F;
  return zero_below(z0, kBorder, large) + (small - zero_below(z0, kBorder, small));  // one of the terms is 0
}

struct Silu {
  Vec operator()(Vec const& x) const { return x / (broadcast(1.0F) + exponential(zero() - x)); }
};
// x (1 + erf(x / sqrt(2))) / 2; x erf(x) is even.
struct Gelu {
  Vec operator()(Vec const& x) const {
    Vec const magnitude = max(zero() - x, x);
    Vec const erf = error_function(magnitude * broadcast(0.707106781F));
    return fma(broadcast(0.5F) * magnitude, erf, broadcast(0.5F) * x);
  }
};
// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
struct GeluTanh {
  Vec operator()(Vec const& x) const {
    Vec const inner = fma(x * x * broadcast(0.044715F), x, x);
    return x / (broadcast(1.0F) + exponential(inner * broadcast(-1.59576912F)));
  }
};
struct Relu {
  Vec operator()(Vec const& x) const { return max(zero(), x); }
};

template <class F>
void activate_each(F f, float const* gate, float const* up, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    Vec const u = load_some(up + i, n - i);
    store_some(out + i, gate == nullptr ? f(u) : f(load_some(gate + i, n - i)) * u, n - i);
  }
}

void activate_clamped(ActivationSpec const& f, float const* gate, float const* up, std::size_t n, float* out) {
  Vec const limit = broadcast(f.limit);
  for (std::size_t i = 0; i < n; i += kLanes) {
    Vec const g = min(limit, load_some(gate + i, n - i));
    Vec const u = min(limit, max(zero() - limit, load_some(up + i, n - i)));
    Vec const silu = g / (broadcast(1.0F) + exponential(zero() - broadcast(f.alpha) * g));
    store_some(out + i, silu * (u + broadcast(1.0F)), n - i);
  }
}

void activate(ActivationSpec const& f, float const* gate, float const* up, std::size_t n, float* out) {
  switch (f.kind) {
    case Activation::silu:
      return activate_each(Silu(), gate, up, n, out);
    case Activation::gelu:
      return activate_each(Gelu(), gate, up, n, out);
    case Activation::gelu_tanh:
      return activate_each(GeluTanh(), gate, up, n, out);
    case Activation::relu:
      return activate_each(Relu(), gate, up, n, out);
    case Activation::clamped_silu:
      return activate_clamped(f, gate, up, n, out);
  }
}

void add_row(float* x, float const* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kLanes)
    store_some(x + i, load_some(x + i, n - i) + load_some(y + i, n - i), n - i);
}

template <class T>
void axpy(float a, T const* x, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; i += kLanes)
    store_some(y + i, fma(broadcast(a), load_some(x + i, n - i), load_some(y + i, n - i)), n - i);
}

// ---- ceilings
float read_stream(float const* x, std::size_t n) {
  constexpr std::size_t kSums = kStreamFloats / kLanes;
  Vec sums[kSums];
  for (Vec& sum : sums) sum = zero();
  for (std::size_t i = 0; i < n; i += kStreamFloats)
    for (std::size_t j = 0; j < kSums; ++j) sums[j] = sums[j] + load(x + i + j * kLanes);
  for (Vec const& sum : sums) sums[0] = sums[0] + sum;
  return sum_lanes(sums[0]);
}

float peak_f32(std::size_t rounds) {
  Vec const x = broadcast(1.0F / static_cast<float>(rounds));
  return peak<float>(rounds, [&](Vec const& sum, std::size_t, std::size_t) { return fma(x, x, sum); });
}

constexpr KernelTable kTable = {
    .gemm_f32 = gemm<GemmF32>,
    .gemm_bf16 = gemm<GemmBf16>,
    .gemm_int8 = gemm<GemmInt8>,
    .gemm_int4 = gemm<GemmInt4>,
    .gemm_mxfp4 = gemm_coded<Mxfp4Codes>,
    .gemm_fp8 = gemm_coded<Fp8Codes>,
    .attend_f32 = attend<float>,
    .attend_bf16 = attend<std::uint16_t>,
    .attend_int8 = attend<std::int8_t>,
    .round_bf16 = round_bf16,
    .widen_bf16 = widen_bf16,
    .quantise_int8 = quantise_int8,
    .quantise_for_int4 = quantise_for_int4,
    .rms_norm = rms_norm_row,
    .layer_norm = layer_norm_row,
    .activate = activate,
    .add = add_row,
    .axpy_f32 = axpy<float>,
    .axpy_bf16 = axpy<std::uint16_t>,
    .read_stream = read_stream,
    .peak_f32 = peak_f32,
    .peak_bf16 = peak_bf16,
    .peak_int8 = peak_int8,
    .peak_int4 = peak_int4,
    .peak_multiply_adds = kAccumulators,
};

}  // namespace
}  // namespace expertmesh
