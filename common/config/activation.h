// The activation functions of FFNs. Includes nothing: the kernels of every ISA read it.
#pragma once
#include <cstdint>

namespace expertmesh {

// f of an FFN: with a gate, down(f(gate(x)) * up(x)); without one, down(f(up(x))).
enum class Activation : std::uint8_t {
  silu,          // x / (1 + e^-x)
  gelu,          // x Phi(x), by the error function (Hendrycks and Gimpel 2016)
  gelu_tanh,     // its tanh approximation
  relu,          // max(x, 0)
  clamped_silu,  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): g / (1 + e^(-alpha g)) * (u + 1)
};

struct ActivationSpec {
  Activation kind = Activation::silu;
  float alpha = 0;  // clamped_silu only
  float limit = 0;  // clamped_silu only
  bool operator==(ActivationSpec const&) const = default;
};

}  // namespace expertmesh
