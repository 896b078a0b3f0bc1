// Weights in FP8 and MXFP4 as checkpoints have them, made up for tests.
#pragma once
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/base/small_floats.h"
#include "tests/unit/kernels/reference.h"

namespace expertmesh::reference {

inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t i) {
  return mix64(seed << 32 ^ i);
}

// A weight as a checkpoint has it, and its numbers as its loader would make them.
struct Coded {
  WeightFormat format;
  std::size_t n, k;
  std::vector<std::byte> codes, scales;

  Coded(WeightFormat const& f, std::size_t rows, std::size_t columns) : format(f), n(rows), k(columns) {
    codes.resize(n * coded_row_bytes(format, k).codes);
    scales.resize(n * coded_row_bytes(format, k).scales);
  }
  [[nodiscard]] bool mxfp4() const { return format.storage == DType::f4_e2m1; }
  [[nodiscard]] std::size_t groups() const { return (k + format.group_size - 1) / format.group_size; }
  void set_scale(std::size_t row, std::size_t group, float scale) {
    std::memcpy(&scales[(row * groups() + group) * sizeof scale], &scale, sizeof scale);
  }
  [[nodiscard]] float number(std::size_t row, std::size_t i) const {
    std::size_t const at = row * groups() + i / format.group_size;
    if (mxfp4()) {
      auto const both = std::to_integer<std::uint8_t>(codes[(row * k + i) / 2]);
      return e2m1_to_float(i % 2 == 0 ? both : both >> 4) * e8m0_to_float(std::to_integer<std::uint8_t>(scales[at]));
    }
    float scale;
    std::memcpy(&scale, &scales[at * sizeof scale], sizeof scale);
    return e4m3_to_float(std::to_integer<std::uint8_t>(codes[row * k + i])) * scale;
  }
  [[nodiscard]] Matrix<float> numbers() const {
    Matrix<float> out(n, k);
    for (std::size_t row = 0; row < n; ++row)
      for (std::size_t i = 0; i < k; ++i) out.view().row(row)[i] = number(row, i);
    return out;
  }
  // Its rows in parts of different sizes, as tensors that are fused have them.
  [[nodiscard]] PackedMatrix packed(WeightHome const& home = {}) const {
    PackedMatrix out(format, n, k, home);
    CodedRowBytes const row = coded_row_bytes(format, k);
    for (std::size_t first = 0, count = 0; first < n; first += count) {
      count = std::min(n - first, 1 + first % 23);
      out.set_codes(first, count, codes.data() + first * row.codes, scales.data() + first * row.scales);
    }
    return out;
  }
  [[nodiscard]] PackedMatrix as_bf16() const { return reference::packed(kBfloat16Weights, numbers().view()); }
};

// Finite numbers of about the size of 1, with zeros and subnormal codes among them.
inline Coded random_coded(WeightFormat const& format, std::size_t n, std::size_t k, std::uint64_t seed) {
  Coded out(format, n, k);
  for (std::size_t i = 0; i < out.codes.size(); ++i) {
    auto code = static_cast<std::uint8_t>(random_bits(seed, i));
    if (!out.mxfp4() && (code & 0x7f) == 0x7f) code = 0;
    out.codes[i] = std::byte{code};
  }
  for (std::size_t row = 0; row < n; ++row)
    for (std::size_t group = 0; group < out.groups(); ++group) {
      std::uint64_t const bits = random_bits(seed + 1, row * 1000 + group);
      if (out.mxfp4())
        out.scales[row * out.groups() + group] = static_cast<std::byte>(120 + bits % 9);
      else
        out.set_scale(row, group, std::ldexp(static_cast<float>(1 + bits % 0xffffff), -32));
    }
  return out;
}

// NaN is NaN, whatever its bits.
inline std::size_t num_different(MatrixView<float const> a, MatrixView<float const> b) {
  std::size_t different = 0;
  for (std::size_t r = 0; r < a.rows; ++r)
    for (std::size_t c = 0; c < a.cols; ++c)
      different += std::isnan(a.row(r)[c]) ? !std::isnan(b.row(r)[c])
                                           : std::bit_cast<int>(a.row(r)[c]) != std::bit_cast<int>(b.row(r)[c]);
  return different;
}

}  // namespace expertmesh::reference
