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
inline double epsilon_of(DType type) {
  return type == DType::bf16 ? kEpsilonBf16 : kEpsilonF32;
}

inline PackedMatrix packed(WeightFormat const& format, MatrixView<float const> w) {
  PackedMatrix out(format, w.rows, w.cols);
  for (std::size_t n = 0; n < w.rows; ++n) out.set_rows(n, 1, DType::f32, reinterpret_cast<std::byte const*>(w.row(n)));
  return out;
}

// One sum over K of exact or bounded x with exact w: every partial sum may be rounded.
inline Bounded dot(std::vector<Bounded> const& x, float const* w, DType storage) {
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

// silu(gate) * up; |silu'| < 1.1.
inline Bounded swiglu(Bounded gate, Bounded up) {
  double const silu = gate.value / (1 + std::exp(-gate.value));
  double const silu_bound = 1.1 * gate.bound + 8 * kEpsilonF32 * std::abs(silu);
  return {silu * up.value, silu_bound * (std::abs(up.value) + up.bound) + std::abs(silu) * up.bound +
                               kEpsilonF32 * std::abs(silu * up.value)};
}

// One row through one expert. gate, up: [F,H], down: [H,F].
inline std::vector<Bounded> ffn(float const* x, MatrixView<float const> gate, MatrixView<float const> up,
                                MatrixView<float const> down, WeightFormat const& format, DType wire) {
  DType const type = activation_dtype(format);
  std::vector<Bounded> row(gate.cols);
  for (std::size_t h = 0; h < row.size(); ++h) row[h] = {static_cast<double>(rounded(rounded(x[h], wire), type)), 0};
  std::vector<Bounded> hidden;
  for (std::size_t f = 0; f < gate.rows; ++f) {
    Bounded act = swiglu(dot(row, gate.row(f), format.storage), dot(row, up.row(f), format.storage));
    act.bound += epsilon_of(type) * (std::abs(act.value) + act.bound);
    hidden.push_back(act);
  }
  std::vector<Bounded> out;
  for (std::size_t h = 0; h < down.rows; ++h) {
    Bounded y = dot(hidden, down.row(h), format.storage);
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
// cache does), from position `first` on. sink: logit of one key more, without a value.
inline std::vector<Bounded> attention(float const* q, std::vector<std::vector<float>> const& keys,
                                      std::vector<std::vector<float>> const& values, std::size_t first,
                                      std::size_t last, double scale, std::optional<float> sink) {
  std::size_t const d = keys.front().size();
  std::vector<double> scores;
  double score_bound = 0;
  for (std::size_t p = first; p <= last; ++p) {
    double dot = 0;
    double magnitude = 0;
    for (std::size_t i = 0; i < d; ++i) {
      double const term = static_cast<double>(q[i]) * static_cast<double>(keys[p][i]);
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
    out[i].bound = (4 * score_bound + static_cast<double>(scores.size() + 32) * kEpsilonF32) * magnitude;
  }
  return out;
}

}  // namespace expertmesh::reference
