// Plain references of the ops in double precision, each result with a bound on the error a right fp32 implementation
// may have: from the norms of the operands and the epsilon of the types, whatever the order of the sums.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "common/base/bf16.h"
#include "common/base/counter_rng.h"
#include "common/config/activation.h"
#include "common/config/weight_format.h"
#include "common/kernels/exec.h"
#include "common/kernels/packed_matrix.h"
#include "common/tensor/tensor.h"

namespace expertmesh::reference {

constexpr double kEpsilonF32 = 0x1p-23;
constexpr double kEpsilonBf16 = 0x1p-7;

struct Bounded {
  double value = 0;
  double bound = 0;  // |computed - value| must not exceed it
};
using BoundedMatrix = std::vector<std::vector<Bounded>>;  // [rows][cols]

// Elements that are further from the reference than the bound allows, or NaN where it is not.
inline std::size_t num_wrong(MatrixView<float const> actual, BoundedMatrix const& expected) {
  std::size_t wrong = actual.rows == expected.size() ? 0 : 1;
  for (std::size_t r = 0; r < expected.size(); ++r)
    for (std::size_t c = 0; c < expected[r].size(); ++c)
      wrong += !(std::abs(static_cast<double>(actual.row(r)[c]) - expected[r][c].value) <= expected[r][c].bound);
  return wrong;
}

// Numbers in (-1, 1), the same for the same seed.
inline Matrix<float> random_matrix(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  Matrix<float> out(rows, cols);
  for (std::size_t i = 0; i < rows * cols; ++i)
    out.view().data[i] = static_cast<float>(static_cast<double>(mix64(seed << 32 ^ i) >> 11) * 0x1p-52 - 1.0);
  return out;
}

inline bool same_bits(MatrixView<float const> a, MatrixView<float const> b) {
  if (a.rows != b.rows || a.cols != b.cols) return false;
  for (std::size_t r = 0; r < a.rows; ++r)
    if (std::memcmp(a.row(r), b.row(r), a.cols * sizeof(float)) != 0) return false;
  return true;
}

inline float rounded(float x, DType type) {
  return type == DType::bf16 ? to_float(to_bf16(x)) : x;
}
// A key or value, or a part of one with a scale of its own, as the KV cache gives it back.
inline void as_cached(float const* x, std::size_t n, DType type, float* out) {
  float largest = 0;
  for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  for (std::size_t i = 0; i < n; ++i)
    out[i] = type != DType::i8 ? rounded(x[i], type)
             : largest == 0    ? 0
                               : std::nearbyint(x[i] * (127 / largest)) * (largest / 127);
}
inline double epsilon_of(DType type) {
  return type == DType::bf16 ? kEpsilonBf16 : kEpsilonF32;
}

inline PackedMatrix packed(WeightFormat const& format, MatrixView<float const> w) {
  PackedMatrix out(format, w.rows, w.cols);
  for (std::size_t n = 0; n < w.rows; ++n) out.set_rows(n, 1, DType::f32, reinterpret_cast<std::byte const*>(w.row(n)));
  return out;
}

// The same sum where activations become int8 group by group, and weights int8, or int4 by smaller groups: each number
// may move by half a step of its group, in int4 by no more than the range's end may be from the largest number.
inline Bounded dot_quantised(std::vector<Bounded> const& x, float const* w, DType storage) {
  constexpr double kInt4Share = 0.14;  // of the group's largest
  constexpr double kHalfSteps = 2 * 127 / (1 + 127 * 4 * kEpsilonF32);
  Bounded sum;
  double magnitude = 0;
  std::size_t const groups = x.size() / (storage == DType::i4 ? kInt4Weights : kInt8Weights).group_size + 1;
  for (std::size_t begin = 0; begin < x.size(); begin += kInt8Weights.group_size) {
    std::size_t const end = std::min(x.size(), begin + kInt8Weights.group_size);
    double x_step = 0;
    double w_step = 0;
    for (std::size_t k = begin; k < end; ++k) {
      x_step = std::max(x_step, (std::abs(x[k].value) + x[k].bound) / kHalfSteps);
      w_step =
          std::max(w_step, std::abs(static_cast<double>(w[k])) * (storage == DType::i4 ? kInt4Share : 1 / kHalfSteps));
    }
    for (std::size_t k = begin; k < end; ++k) {
      double const weight = static_cast<double>(w[k]);
      sum.value += x[k].value * weight;
      double const moved = x[k].bound + x_step;
      sum.bound += moved * std::abs(weight) + (std::abs(x[k].value) + moved) * w_step;
      magnitude += (std::abs(x[k].value) + moved) * (std::abs(weight) + w_step);
    }
  }
  sum.bound += static_cast<double>(groups + 4) * kEpsilonF32 * magnitude;
  return sum;
}

// One sum over K of exact or bounded x with exact w: every partial sum may be rounded.
inline Bounded dot(std::vector<Bounded> const& x, float const* w, DType storage) {
  if (storage == DType::i8 || storage == DType::i4) return dot_quantised(x, w, storage);
  double value = 0;
  double magnitude = 0;
  double carried = 0;
  for (std::size_t k = 0; k < x.size(); ++k) {
    double const weight = static_cast<double>(rounded(w[k], storage));
    value += x[k].value * weight;
    magnitude += std::abs(x[k].value * weight);
    carried += x[k].bound * std::abs(weight);
  }
  return {value, carried + static_cast<double>(x.size() + 1) * kEpsilonF32 * (magnitude + carried)};
}

inline std::vector<Bounded> exact(float const* x, std::size_t n, DType type) {
  std::vector<Bounded> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = {static_cast<double>(rounded(x[i], type)), 0};
  return out;
}

inline DType activation_dtype(WeightFormat const& format) {
  return format.activation == ActivationRule::round_to_bf16 ? DType::bf16 : DType::f32;
}

// x: [M,K], w: [N,K] -> [M,N]
inline BoundedMatrix linear(MatrixView<float const> x, MatrixView<float const> w, WeightFormat const& format) {
  BoundedMatrix out(x.rows);
  for (std::size_t m = 0; m < x.rows; ++m) {
    auto const row = exact(x.row(m), x.cols, activation_dtype(format));
    for (std::size_t n = 0; n < w.rows; ++n) out[m].push_back(dot(row, w.row(n), format.storage));
  }
  return out;
}

// f(x), and the largest |f'| anywhere: how much of an error in x arrives.
struct ActivationValue {
  double value;
  double slope;
};
inline ActivationValue activation(Activation kind, double x) {
  constexpr double kPi = 3.14159265358979323846;
  switch (kind) {
    case Activation::silu:
      return {x / (1 + std::exp(-x)), 1.1};
    case Activation::gelu:
      return {x * std::erfc(-x / std::sqrt(2.0)) / 2, 1.13};
    case Activation::gelu_tanh:
      // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), which does not cancel
      return {x / (1 + std::exp(-2 * std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x))), 1.13};
    case Activation::relu:
      return {std::max(x, 0.0), 1};
    case Activation::clamped_silu:
      break;
  }
  return {NAN, NAN};
}

// Of an fp32 implementation. Where 1 + erf cancels, what is left has an error of erf's size: of x, not of the result.
// The argument of an exponential carries its rounding errors into the exponent. Below 1e-36 anything goes.
inline double own_error(Activation kind, double x, double value) {
  double const of_x = kind == Activation::gelu ? std::abs(x) * kEpsilonF32 : 0;
  double const argument = kind == Activation::gelu_tanh ? std::abs(x) + 0.05 * std::abs(x * x * x) : 0;
  return of_x + 8 * kEpsilonF32 * std::abs(value) * (1 + argument) + 1e-36;
}

inline Bounded clamped_silu(ActivationSpec const& f, Bounded gate, Bounded up) {
  double const limit = static_cast<double>(f.limit);
  double const g = std::min(gate.value, limit);
  double const u = std::clamp(up.value, -limit, limit) + 1;
  double const alpha = static_cast<double>(f.alpha);
  double const silu = g / (1 + std::exp(-alpha * g));
  double const bound = 1.1 * gate.bound + (8 + std::abs(alpha * g)) * kEpsilonF32 * std::abs(silu) + 1e-36;
  return {silu * u, bound * (std::abs(u) + up.bound) + std::abs(silu) * (up.bound + kEpsilonF32 * std::abs(u)) +
                        kEpsilonF32 * std::abs(silu * u)};
}

// f(gate) * up, or f(up) where there is no gate.
inline Bounded activated(ActivationSpec const& f, std::optional<Bounded> gate, Bounded up) {
  if (f.kind == Activation::clamped_silu) return clamped_silu(f, *gate, up);
  Bounded const x = gate.value_or(up);
  auto const [value, slope] = activation(f.kind, x.value);
  double const bound = slope * x.bound + own_error(f.kind, x.value, value);
  if (!gate) return {value, bound};
  return {value * up.value, bound * (std::abs(up.value) + up.bound) + std::abs(value) * up.bound +
                                kEpsilonF32 * std::abs(value * up.value)};
}

// One FFN's weights in fp32. Biases: [1,N], or no rows for none; no rows of the gate: none.
struct Ffn {
  Matrix<float> gate;  // [F,H]
  Matrix<float> up;    // [F,H]
  Matrix<float> down;  // [H,F]
  Matrix<float> gate_bias, up_bias, down_bias;
  ActivationSpec activation{};
  [[nodiscard]] bool gated() const { return gate.view().rows > 0; }
};

// A finished sum and its bias.
inline Bounded plus(Bounded sum, Matrix<float> const& bias, std::size_t n) {
  if (bias.view().rows == 0) return sum;
  sum.value += static_cast<double>(bias.view().data[n]);
  sum.bound += kEpsilonF32 * (std::abs(sum.value) + sum.bound);
  return sum;
}

// One row through one expert.
inline std::vector<Bounded> ffn(float const* x, Ffn const& w, WeightFormat const& format, DType wire) {
  DType const type = activation_dtype(format);
  std::vector<Bounded> row(w.up.view().cols);
  for (std::size_t h = 0; h < row.size(); ++h) row[h] = {static_cast<double>(rounded(rounded(x[h], wire), type)), 0};
  std::vector<Bounded> hidden;
  for (std::size_t f = 0; f < w.up.view().rows; ++f) {
    std::optional<Bounded> gate;
    if (w.gated()) gate = plus(dot(row, w.gate.view().row(f), format.storage), w.gate_bias, f);
    Bounded act = activated(w.activation, gate, plus(dot(row, w.up.view().row(f), format.storage), w.up_bias, f));
    act.bound += epsilon_of(type) * (std::abs(act.value) + act.bound);
    hidden.push_back(act);
  }
  std::vector<Bounded> out;
  for (std::size_t h = 0; h < w.down.view().rows; ++h) {
    Bounded y = plus(dot(hidden, w.down.view().row(h), format.storage), w.down_bias, h);
    y.bound += epsilon_of(wire) * (std::abs(y.value) + y.bound);
    out.push_back(y);
  }
  return out;
}

inline std::vector<Bounded> rms_norm(float const* x, float const* weight, std::size_t n, double epsilon) {
  double squares = 0;
  for (std::size_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double const scale = 1 / std::sqrt(squares / static_cast<double>(n) + epsilon);
  std::vector<Bounded> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    double const y = static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]);
    out[i] = {y, (static_cast<double>(n) / 2 + 8) * kEpsilonF32 * std::abs(y)};
  }
  return out;
}

// bias: null for none.
inline std::vector<Bounded> layer_norm(float const* x, float const* weight, float const* bias, std::size_t n,
                                       double epsilon) {
  double mean = 0;
  double magnitude = 0;
  for (std::size_t i = 0; i < n; ++i) {
    mean += static_cast<double>(x[i]) / static_cast<double>(n);
    magnitude += std::abs(static_cast<double>(x[i])) / static_cast<double>(n);
  }
  double variance = 0;
  for (std::size_t i = 0; i < n; ++i)
    variance += (static_cast<double>(x[i]) - mean) * (static_cast<double>(x[i]) - mean) / static_cast<double>(n);
  double const scale = 1 / std::sqrt(variance + epsilon);
  double const mean_bound = static_cast<double>(n) * kEpsilonF32 * magnitude;  // its error is in every distance
  std::vector<Bounded> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    double const distance = static_cast<double>(x[i]) - mean;
    double const w = static_cast<double>(weight[i]);
    double const b = bias ? static_cast<double>(bias[i]) : 0;
    double const relative = (static_cast<double>(n) / 2 + 8) * kEpsilonF32 + 2 * mean_bound * scale;
    out[i] = {distance * scale * w + b, std::abs(w) * scale * (relative * std::abs(distance) + 2 * mean_bound) +
                                            kEpsilonF32 * (std::abs(distance * scale * w) + std::abs(b))};
  }
  return out;
}

// One query head q [DK] over keys [positions 0…last][DK] and values [0…last][DV] of its KV head (already rounded as the
// cache does), from position `first` on. Where they are bfloat16, so are the query and, to within half a step, the
// weights of the values. sink: logit of one key more, without a value.
inline std::vector<Bounded> attention(float const* q, std::vector<std::vector<float>> const& keys,
                                      std::vector<std::vector<float>> const& values, DType type, std::size_t first,
                                      std::size_t last, double scale, std::optional<float> sink) {
  DType const of_products = type == DType::bf16 ? DType::bf16 : DType::f32;
  std::size_t const d = keys.front().size();
  std::vector<double> scores;
  double score_bound = 0;
  for (std::size_t p = first; p <= last; ++p) {
    double dot = 0;
    double magnitude = 0;
    for (std::size_t i = 0; i < d; ++i) {
      double const term = static_cast<double>(rounded(q[i], of_products)) * static_cast<double>(keys[p][i]);
      dot += term;
      magnitude += std::abs(term);
    }
    scores.push_back(dot * scale);
    score_bound = std::max(score_bound, static_cast<double>(d + 2) * kEpsilonF32 * magnitude * std::abs(scale));
  }
  double largest = scores.front();
  for (double s : scores) largest = std::max(largest, s);
  double sum = sink ? std::exp(static_cast<double>(*sink) - largest) : 0;
  for (double& s : scores) sum += s = std::exp(s - largest);
  std::vector<Bounded> out(values.front().size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    double magnitude = 0;
    for (std::size_t p = first; p <= last; ++p) {
      double const term = scores[p - first] / sum * static_cast<double>(values[p][i]);
      out[i].value += term;
      magnitude += std::abs(term);
    }
    out[i].bound = (4 * score_bound + static_cast<double>(scores.size() + 32) * kEpsilonF32 +
                    (of_products == DType::bf16 ? kEpsilonBf16 / 2 : 0)) *
                   magnitude;
  }
  return out;
}

}  // namespace expertmesh::reference
