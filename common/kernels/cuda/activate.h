// The activation functions of activation.h in kernels. Every product that meets a sum is a fused one by name: the same
// bits wherever a compiler puts them.
#pragma once
#include "common/config/activation.h"
#include "common/kernels/cuda/portable.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

// f(x); not clamped_silu, which needs a gate.
EM_BOTH inline float activated(Activation kind, float x) {
  switch (kind) {
    case Activation::gelu:
      return fmaf(0.5F * x, erff(x * 0.707106781F), 0.5F * x);
    case Activation::gelu_tanh:  // x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
      return x / (1.0F + expf(fmaf(x * x * 0.044715F, x, x) * -1.59576912F));
    case Activation::relu:
      return x < 0.0F ? 0.0F : x;
    default:
      return x / (1.0F + expf(-x));
  }
}

// f(gate) * up
EM_BOTH inline float activated(ActivationSpec const& f, float gate, float up) {
  if (f.kind != Activation::clamped_silu) return activated(f.kind, gate) * up;
  float const g = f.limit < gate ? f.limit : gate;  // a NaN stays one
  float const above = up < -f.limit ? -f.limit : up;
  float const u = f.limit < above ? f.limit : above;
  return g / (1.0F + expf(-f.alpha * g)) * (u + 1.0F);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
