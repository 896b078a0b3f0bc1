// Weights in the integer layouts of checkpoints, one element at a time, from the description in weight_slice.h.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/base/bf16.h"
#include "common/config/weight_slice.h"
#include "common/tensor/dtype.h"

namespace expertmesh::test {

struct RawTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;
};

// What a stored matrix [rows,K] says: weight = (code - zero point) x scale, codes and zero points unsigned.
struct IntegerMatrix {
  std::size_t rows = 0;
  std::size_t k = 0;
  std::size_t groups = 0;
  std::vector<std::uint32_t> codes{};        // [rows,K]
  std::vector<float> scales{};               // [rows,G], exact in bf16 and in fp16
  std::vector<std::uint32_t> zero_points{};  // [rows,G]
  std::vector<std::uint32_t> group_of{};     // [K]

  [[nodiscard]] float weight(std::size_t row, std::size_t e) const {
    std::size_t const group = row * groups + group_of[e];
    return (static_cast<float>(codes[row * k + e]) - static_cast<float>(zero_points[group])) * scales[group];
  }
};

// Any codes, scales of either sign of at most 2^(7 + exponent), any zero points that the form has.
inline IntegerMatrix random_matrix(StoredIntegers const& form, std::size_t rows, std::size_t k, std::mt19937& random,
                                   int exponent = -9) {
  IntegerMatrix m{.rows = rows, .k = k, .groups = form.num_groups(k)};
  std::uint32_t const range = 1U << form.bits;
  auto const any = [&] { return static_cast<std::uint32_t>(random()) % range; };
  for (std::size_t i = 0; i < rows * k; ++i) m.codes.push_back(any());
  for (std::size_t i = 0; i < rows * m.groups; ++i) {
    bool const first = i == 0 || !form.one_scale;
    m.scales.push_back(first ? std::ldexp(static_cast<float>(static_cast<int>(random() % 255) - 127), exponent)
                             : m.scales.front());
    m.zero_points.push_back(form.zero_points == ZeroPoints::middle ? range / 2 : first ? any() : m.zero_points.front());
  }
  for (std::size_t e = 0; e < k; ++e)
    m.group_of.push_back(static_cast<std::uint32_t>(form.group_size == 0 ? 0 : e / form.group_size));
  if (form.has_group_index) std::shuffle(m.group_of.begin(), m.group_of.end(), random);
  return m;
}

// Its tensors. scale_type: f32, bf16 or f16.
inline std::vector<RawTensor> stored_tensors(StoredIntegers const& form, std::string const& module,
                                             IntegerMatrix const& m, DType scale_type) {
  std::vector<RawTensor> out;
  auto const add = [&](char const* name, DType dtype, std::vector<std::size_t> shape) -> RawTensor& {
    std::size_t bytes = size_of(dtype);
    for (std::size_t const n : shape) bytes *= n;
    return out.emplace_back(RawTensor{module + name, dtype, std::move(shape), std::vector<std::byte>(bytes)});
  };
  auto const put = [](RawTensor& tensor, std::size_t index, auto value) {
    std::memcpy(tensor.bytes.data() + index * sizeof value, &value, sizeof value);
  };
  std::size_t const per_word = 32 / form.bits;
  auto const up = [&](std::size_t n) { return n / per_word + (n % per_word != 0 ? 1 : 0); };
  // Element `at` of a line of codes, whose words lie `stride` apart from word `first` on.
  auto const pack = [&](RawTensor& tensor, std::size_t first, std::size_t stride, std::size_t at, std::uint32_t code) {
    std::size_t place = at % per_word;
    constexpr std::array<std::size_t, 8> kAwq = {0, 2, 4, 6, 1, 3, 5, 7};  // which code the n-th place has
    if (form.layout == IntegerLayout::awq) {
      std::size_t n = 0;
      while (kAwq[n] != at % per_word) ++n;
      place = n;
    }
    std::size_t const word = first + at / per_word * stride;
    std::uint32_t bits = 0;
    std::memcpy(&bits, tensor.bytes.data() + word * 4, 4);
    put(tensor, word, bits | code << (place * form.bits));
  };
  auto const put_scale = [&](RawTensor& tensor, std::size_t index, float scale) {
    if (scale_type == DType::f32) return put(tensor, index, scale);
    if (scale_type == DType::bf16) return put(tensor, index, to_bf16(scale));
    std::uint16_t half = 0;  // of scales that are a few bits: by search
    while (to_float(fp16{half}) != scale) ++half;
    put(tensor, index, half);
  };
  bool const zeros = form.zero_points != ZeroPoints::middle;
  std::uint32_t const less = form.zero_points == ZeroPoints::stored_minus_one ? 1 : 0;
  auto const stored_zero = [&](std::size_t row, std::size_t g) {
    return (m.zero_points[row * m.groups + g] - less) & ((1U << form.bits) - 1);
  };
  bool const bytes = form.layout == IntegerLayout::bytes;
  if (form.layout == IntegerLayout::gptq || form.layout == IntegerLayout::awq) {
    bool const along_k = form.layout == IntegerLayout::gptq;
    RawTensor& codes =
        along_k ? add(".qweight", DType::i32, {up(m.k), m.rows}) : add(".qweight", DType::i32, {m.k, up(m.rows)});
    for (std::size_t r = 0; r < m.rows; ++r)
      for (std::size_t e = 0; e < m.k; ++e)
        along_k ? pack(codes, r, m.rows, e, m.codes[r * m.k + e])
                : pack(codes, e * up(m.rows), 1, r, m.codes[r * m.k + e]);
    RawTensor& scales = add(".scales", scale_type, {m.groups, m.rows});
    for (std::size_t r = 0; r < m.rows; ++r)
      for (std::size_t g = 0; g < m.groups; ++g) put_scale(scales, g * m.rows + r, m.scales[r * m.groups + g]);
    if (zeros) {
      RawTensor& points = add(".qzeros", DType::i32, {m.groups, up(m.rows)});
      for (std::size_t r = 0; r < m.rows; ++r)
        for (std::size_t g = 0; g < m.groups; ++g) pack(points, g * up(m.rows), 1, r, stored_zero(r, g));
    }
  } else {
    RawTensor& codes =
        bytes ? add(".weight", DType::i8, {m.rows, m.k}) : add(".weight_packed", DType::i32, {m.rows, up(m.k)});
    for (std::size_t r = 0; r < m.rows; ++r)
      for (std::size_t e = 0; e < m.k; ++e)
        bytes ? put(codes, r * m.k + e, static_cast<std::uint8_t>(m.codes[r * m.k + e] - 128))
              : pack(codes, r * up(m.k), 1, e, m.codes[r * m.k + e]);
    std::vector<std::size_t> const shape =
        form.one_scale ? std::vector<std::size_t>{1} : std::vector<std::size_t>{m.rows, m.groups};
    std::size_t const num_scales = form.one_scale ? 1 : m.scales.size();
    RawTensor& scales = add(".weight_scale", scale_type, shape);
    for (std::size_t i = 0; i < num_scales; ++i) put_scale(scales, i, m.scales[i]);
    if (zeros && bytes) {
      RawTensor& points = add(".weight_zero_point", DType::i8, shape);
      for (std::size_t i = 0; i < num_scales; ++i) put(points, i, static_cast<std::uint8_t>(m.zero_points[i] - 128));
    } else if (zeros) {
      RawTensor& points = add(".weight_zero_point", DType::i32, {up(m.rows), m.groups});
      for (std::size_t r = 0; r < m.rows; ++r)
        for (std::size_t g = 0; g < m.groups; ++g) pack(points, g, m.groups, r, stored_zero(r, g));
    }
    if (!bytes) {
      RawTensor& sizes = add(".weight_shape", DType::i64, {2});
      put(sizes, 0, static_cast<std::int64_t>(m.rows));
      put(sizes, 1, static_cast<std::int64_t>(m.k));
    }
  }
  if (form.has_group_index) {
    RawTensor& index = add(form.layout == IntegerLayout::gptq ? ".g_idx" : ".weight_g_idx", DType::i32, {m.k});
    for (std::size_t e = 0; e < m.k; ++e) put(index, e, m.group_of[e]);
  }
  return out;
}

}  // namespace expertmesh::test
