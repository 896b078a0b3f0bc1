#include "common/checkpoint/integer_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/base/divided_up.h"
#include "common/base/error.h"

namespace expertmesh {
namespace {

constexpr std::size_t kWordBits = 32;
// Where an int32 of awq has the code of row r, counted in codes: the inverse of 0 2 4 6 1 3 5 7.
constexpr std::array<std::uint32_t, 8> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

template <class T>
T at(StoredTensor const& tensor, std::size_t index) {
  T x;
  std::memcpy(&x, tensor.bytes.data() + index * sizeof(T), sizeof(T));
  return x;
}

// The codes of a word in bytes of their own, in the order they have.
std::uint64_t in_bytes(std::uint32_t word, std::size_t bits) {
  std::uint64_t x = word;
  if (bits == 8) return x;
  x = (x | x << 16) & 0x0000ffff0000ffffU;
  x = (x | x << 8) & 0x00ff00ff00ff00ffU;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0fU;
}

// The first `count` bytes; nearly always a whole word's, which are stored at once.
void put(std::uint8_t* out, std::uint64_t bytes, std::size_t count) {
  if (count == 8)
    std::memcpy(out, &bytes, 8);
  else if (count == 4)
    std::memcpy(out, &bytes, 4);
  else
    std::memcpy(out, &bytes, count);
}

// Byte j of element i becomes byte i of element j: blocks of four, of two, and single ones change places.
void transpose(std::array<std::uint64_t, 8>& x) {
  constexpr std::array<std::uint64_t, 3> kLow = {0x00000000ffffffffU, 0x0000ffff0000ffffU, 0x00ff00ff00ff00ffU};
  for (std::size_t step = 0; step < 3; ++step) {
    std::size_t const half = std::size_t{4} >> step;
    for (std::size_t i = 0; i < 8; ++i) {
      if ((i & half) != 0) continue;
      std::uint64_t const moved = (x[i] >> (8 * half) ^ x[i + half]) & kLow[step];
      x[i + half] ^= moved;
      x[i] ^= moved << (8 * half);
    }
  }
}

// Of numbers that give weights [.,k] a deviation of about 1/sqrt(k), if codes (and stored zero points) are equally
// likely.
float scale_of_random_codes(StoredIntegers const& i, std::size_t k) {
  double const variance = (std::exp2(2.0 * static_cast<double>(i.bits)) - 1) / 12;
  double const stored = i.zero_points == ZeroPoints::middle ? 1 : 2;
  return static_cast<float>(1 / std::sqrt(static_cast<double>(k) * variance * stored));
}

}  // namespace

std::vector<TensorInfo> integer_tensors_of(WeightSlice const& w, std::size_t n, std::size_t k) {
  StoredIntegers const& i = w.integers;
  std::size_t const rows = w.stored_rows == 0 ? n : w.stored_rows;
  std::size_t const per_word = kWordBits / i.bits;
  std::size_t const groups = i.num_groups(k);
  std::size_t const row_words = divided_up(rows, per_word);
  std::size_t const k_words = divided_up(k, per_word);
  std::vector<TensorInfo> out;
  auto const add = [&](char const* name, std::vector<std::size_t> shape, TensorKind kind) -> TensorInfo& {
    return out.emplace_back(TensorInfo{w.name + name, std::move(shape), kind});
  };
  auto const add_scales = [&](char const* name, std::vector<std::size_t> shape) {
    add(name, std::move(shape), TensorKind::numbers).magnitude = scale_of_random_codes(i, k);
  };
  bool const zeros = i.zero_points != ZeroPoints::middle;
  switch (i.layout) {
    case IntegerLayout::gptq:
      add(".qweight", {k_words, rows}, TensorKind::words);
      add_scales(".scales", {groups, rows});
      if (zeros) add(".qzeros", {groups, row_words}, TensorKind::words);
      if (i.has_group_index) add(".g_idx", {k}, TensorKind::indices);
      return out;
    case IntegerLayout::awq:
      add(".qweight", {k, row_words}, TensorKind::words);
      add_scales(".scales", {groups, rows});
      if (zeros) add(".qzeros", {groups, row_words}, TensorKind::words);
      return out;
    case IntegerLayout::packed:
      add(".weight_packed", {rows, k_words}, TensorKind::words);
      add_scales(".weight_scale", {rows, groups});
      if (zeros) add(".weight_zero_point", {row_words, groups}, TensorKind::words);
      if (i.has_group_index) add(".weight_g_idx", {k}, TensorKind::indices);
      add(".weight_shape", {2}, TensorKind::sizes).values = {rows, k};
      return out;
    case IntegerLayout::bytes: {
      std::vector<std::size_t> const shape = i.one_scale ? std::vector<std::size_t>{1} : std::vector{rows, groups};
      add(".weight", {rows, k}, TensorKind::int8);
      add_scales(".weight_scale", shape);
      if (zeros) add(".weight_zero_point", shape, TensorKind::int8);
      if (i.has_group_index) add(".weight_g_idx", {k}, TensorKind::indices);
      return out;
    }
  }
  EM_CHECK(false, "layout " << static_cast<int>(i.layout));
  return out;
}

IntegerWeights::IntegerWeights(WeightSlice const& slice, std::size_t n, std::size_t k,
                               std::vector<StoredTensor const*> tensors)
    : slice_(slice),
      k_(k),
      stored_rows_(slice.stored_rows == 0 ? n : slice.stored_rows),
      num_groups_(slice.integers.num_groups(k)),
      num_columns_(slice.integers.group_size == 0 ? k : slice.integers.group_size) {
  StoredIntegers const& i = slice.integers;
  std::size_t next = 0;
  codes_ = tensors.at(next++);
  scales_ = tensors.at(next++);
  if (i.zero_points != ZeroPoints::middle) zero_points_ = tensors.at(next++);
  if (!i.has_group_index) return;
  StoredTensor const& index = *tensors.at(next++);
  group_of_.resize(k);
  bool in_order = true;
  for (std::size_t e = 0; e < k; ++e) {
    auto const group = at<std::int32_t>(index, e);
    if (group < 0 || static_cast<std::size_t>(group) >= num_groups_)
      throw ModelError("tensor '" + index.name + "': element " + std::to_string(e) + " is of group " +
                       std::to_string(group) + ", there are " + std::to_string(num_groups_));
    group_of_[e] = static_cast<std::uint32_t>(group);
    in_order = in_order && group_of_[e] == e / num_columns_;
  }
  if (in_order) group_of_.clear();
}

// Words [K/P,rows], each of one row.
void IntegerWeights::codes_along_k(std::size_t first, std::size_t count, std::uint8_t* out) const {
  std::size_t const bits = slice_.integers.bits;
  std::size_t const per_word = kWordBits / bits;
  for (std::size_t begin = 0; begin < k_; begin += per_word)
    for (std::size_t r = 0; r < count; ++r) {
      std::uint64_t const bytes =
          in_bytes(at<std::uint32_t>(*codes_, begin / per_word * stored_rows_ + row_of(first + r)), bits);
      put(out + r * k_ + begin, bytes, std::min(k_ - begin, per_word));
    }
}

// Words [K,rows/8], each of eight rows: of eight elements of K they are turned at a time.
void IntegerWeights::codes_across(std::size_t first, std::size_t count, std::uint8_t* out) const {
  std::size_t const row_words = divided_up(stored_rows_, 8);
  for (std::size_t begin = 0; begin < k_; begin += 8) {
    std::size_t const some = std::min<std::size_t>(k_ - begin, 8);
    std::array<std::uint64_t, 8> rows{};  // by their places in a word: eight elements each
    std::size_t word = row_words;         // that they are of
    for (std::size_t r = 0; r < count; ++r) {
      std::size_t const row = row_of(first + r);
      if (row / 8 != word) {
        word = row / 8;
        for (std::size_t e = 0; e < some; ++e)
          rows[e] = in_bytes(at<std::uint32_t>(*codes_, (begin + e) * row_words + word), 4);
        transpose(rows);
      }
      put(out + r * k_ + begin, rows[kAwqPlace[row % 8]], some);
    }
  }
}

// Words [rows,K/P].
void IntegerWeights::codes_in_rows(std::size_t first, std::size_t count, std::uint8_t* out) const {
  std::size_t const bits = slice_.integers.bits;
  std::size_t const per_word = kWordBits / bits;
  std::size_t const k_words = divided_up(k_, per_word);
  for (std::size_t r = 0; r < count; ++r)
    for (std::size_t begin = 0; begin < k_; begin += per_word) {
      std::uint64_t const bytes =
          in_bytes(at<std::uint32_t>(*codes_, row_of(first + r) * k_words + begin / per_word), bits);
      put(out + r * k_ + begin, bytes, std::min(k_ - begin, per_word));
    }
}

void IntegerWeights::codes(std::size_t first, std::size_t count, std::uint8_t* out) const {
  switch (slice_.integers.layout) {
    case IntegerLayout::gptq:
      return codes_along_k(first, count, out);
    case IntegerLayout::awq:
      return codes_across(first, count, out);
    case IntegerLayout::packed:
      return codes_in_rows(first, count, out);
    case IntegerLayout::bytes:
      for (std::size_t r = 0; r < count; ++r)
        std::transform(codes_->bytes.data() + row_of(first + r) * k_,
                       codes_->bytes.data() + row_of(first + r) * k_ + k_, out + r * k_,
                       [](std::byte b) { return std::to_integer<std::uint8_t>(b ^ std::byte{128}); });
  }
}

float IntegerWeights::zero_point(std::size_t row, std::size_t group) const {
  StoredIntegers const& i = slice_.integers;
  std::uint32_t const half = 1U << (i.bits - 1);
  if (zero_points_ == nullptr) return static_cast<float>(half);
  if (i.layout == IntegerLayout::bytes)
    return static_cast<float>(128 + at<std::int8_t>(*zero_points_, i.one_scale ? 0 : row * num_groups_ + group));
  std::size_t const per_word = kWordBits / i.bits;
  std::size_t const row_words = divided_up(stored_rows_, per_word);
  std::size_t const place = i.layout == IntegerLayout::awq ? kAwqPlace[row % per_word] : row % per_word;
  auto const word =
      at<std::uint32_t>(*zero_points_, i.layout == IntegerLayout::packed ? row / per_word * num_groups_ + group
                                                                         : group * row_words + row / per_word);
  std::uint32_t const stored = word >> (place * i.bits);
  return static_cast<float>((i.zero_points == ZeroPoints::stored_minus_one ? stored + 1 : stored) &
                            ((1U << i.bits) - 1));
}

void IntegerWeights::groups(std::size_t n, float* scales, float* zero_points) const {
  StoredIntegers const& i = slice_.integers;
  std::size_t const row = row_of(n);
  bool const by_rows = i.layout == IntegerLayout::packed || i.layout == IntegerLayout::bytes;
  for (std::size_t g = 0; g < num_groups_; ++g) {
    scales[g] = element(*scales_, i.one_scale ? 0 : by_rows ? row * num_groups_ + g : g * stored_rows_ + row);
    zero_points[g] = zero_point(row, g);
  }
}

void IntegerWeights::dequantise(std::size_t first, std::size_t count, float* out) const {
  std::vector<std::uint8_t> all_codes(count * k_);
  codes(first, count, all_codes.data());
  std::vector<float> scales(num_groups_);
  std::vector<float> zero_points(num_groups_);
  for (std::size_t r = 0; r < count; ++r) {
    groups(first + r, scales.data(), zero_points.data());
    std::uint8_t const* code = all_codes.data() + r * k_;
    float* numbers = out + r * k_;
    if (!group_of_.empty()) {
      for (std::size_t e = 0; e < k_; ++e)
        numbers[e] = (static_cast<float>(code[e]) - zero_points[group_of_[e]]) * scales[group_of_[e]];
      continue;
    }
    for (std::size_t g = 0; g < num_groups_; ++g) {
      float const scale = scales[g];
      float const zero = zero_points[g];
      std::size_t const end = std::min(k_, (g + 1) * num_columns_);
      for (std::size_t e = g * num_columns_; e < end; ++e) numbers[e] = (static_cast<float>(code[e]) - zero) * scale;
    }
  }
}

}  // namespace expertmesh
