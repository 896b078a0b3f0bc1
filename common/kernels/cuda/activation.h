// The activations of FFNs in kernels, in the formulas of common/kernels/isa/kernels_impl.h.
#pragma once
#include "common/config/activation.h"
#include "common/kernels/cuda/portable.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

// The second operand if either is NaN: it stays one in what follows.
__device__ inline float smaller(float a, float b) {
  return a < b ? a : b;
}
__device__ inline float larger(float a, float b) {
  return a > b ? a : b;
}

// f(x) of all kinds but clamped_silu, which needs both.
__device__ inline float activation(Activation kind, float x) {
  switch (kind) {
    case Activation::silu:
      return x / (1.0F + expf(-x));
    case Activation::gelu: {  // x (1 + erf(x / sqrt(2))) / 2; x erf(x) is even
      float const magnitude = fabsf(x);
      return fmaf(0.5F * magnitude, erff(magnitude * 0.707106781F), 0.5F * x);
    }
    case Activation::gelu_tanh: {  // x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
      float const inner = fmaf(x * x * 0.044715F, x, x);
      return x / (1.0F + expf(inner * -1.59576912F));
    }
    case Activation::relu:
      return larger(0.0F, x);
    case Activation::clamped_silu:
      break;
  }
  return x;
}

__device__ inline float clamped_silu(ActivationSpec const& f, float gate, float up) {
  float const g = smaller(f.limit, gate);
  float const u = smaller(f.limit, larger(-f.limit, up));
  return g / (1.0F + expf(-f.alpha * g)) * (u + 1.0F);
}

// f(gate) * up.
__device__ inline float gated_activation(ActivationSpec const& f, float gate, float up) {
  if (f.kind == Activation::clamped_silu) return clamped_silu(f, gate, up);
  return activation(f.kind, gate) * up;
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
