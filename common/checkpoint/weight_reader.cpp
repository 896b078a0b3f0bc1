#include "common/checkpoint/weight_reader.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/base/aligned_buffer.h"
#include "common/base/check.h"
#include "common/base/divided_up.h"
#include "common/base/error.h"
#include "common/base/small_floats.h"
#include "common/checkpoint/integer_weights.h"

namespace expertmesh {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{256} << 10;  // of rows converted at a time
constexpr std::size_t kMinRows = 32;                         // of them: a cache line where they are stored across

void refuse_bad(std::string const& tensor, std::string const& problem) {
  if (!problem.empty()) throw ModelError("tensor '" + tensor + "': " + problem);
}

// Where the rows of a weight lie in its stored matrix.
struct Place {
  WeightSlice const& slice;
  std::size_t k;
  std::size_t stored_rows;

  [[nodiscard]] std::size_t row(std::size_t n) const { return slice.first_row + n * slice.row_step; }
};

// out[r][i] = stored[i][place.row(first + r)] for r < count, i < K. A few i at a time: their lines of the stored matrix
// stay in the first-level cache even if its width is a power of two.
template <class Element>
void transpose(Place const& place, std::byte const* stored, std::size_t first, std::size_t count, std::byte* out) {
  constexpr std::size_t kAtOnce = 8;
  for (std::size_t begin = 0; begin < place.k; begin += kAtOnce) {
    std::size_t const end = std::min(place.k, begin + kAtOnce);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t i = begin; i < end; ++i)
        std::memcpy(out + (r * place.k + i) * sizeof(Element),
                    stored + (i * place.stored_rows + place.row(first + r)) * sizeof(Element), sizeof(Element));
  }
}

// Writes rows [first, first + count) of a weight, as row-major numbers, to `out`.
using Convert = std::function<void(std::size_t first, std::size_t count, std::byte* out)>;

Convert from_transposed(Place const& place, StoredTensor const& tensor) {
  return [&place, bytes = tensor.bytes.data(), wide = size_of(tensor.dtype) == 4](auto first, auto count, auto* out) {
    wide ? transpose<std::uint32_t>(place, bytes, first, count, out)
         : transpose<std::uint16_t>(place, bytes, first, count, out);
  };
}

// Rows and columns of a block of scales, in a matrix of so many.
struct Block {
  std::size_t rows;
  std::size_t columns;
};
Block block_of(WeightSlice const& w, std::size_t rows, std::size_t columns) {
  return {w.block_rows == 0 ? rows : w.block_rows, w.block_columns == 0 ? columns : w.block_columns};
}

// Rows of FP8 codes with a scale for each block of K that they cross, the blocks counted in the stored matrix.
class Fp8Rows {
 public:
  Fp8Rows(Place const& place, StoredTensor const& codes, StoredTensor const& scale_inv)
      : place_(place),
        block_(place.slice.transposed ? block_of(place.slice, place.k, place.stored_rows)
                                      : block_of(place.slice, place.stored_rows, place.k)),
        codes_(codes.bytes.data()),
        stored_scales_(to_floats(scale_inv)) {}

  // Elements of K that share a scale.
  [[nodiscard]] std::size_t width() const { return place_.slice.transposed ? block_.rows : block_.columns; }
  [[nodiscard]] std::size_t num_scales() const { return divided_up(place_.k, width()); }  // of a row
  // Rows [first, first + count), valid until the next call. More than one only where they lie one behind the other, or
  // are transposed.
  WeightCodes rows(std::size_t first, std::size_t count) {
    WeightSlice const& w = place_.slice;
    if (w.transposed) {
      transposed_.resize(count * place_.k);
      transpose<std::uint8_t>(place_, codes_, first, count, transposed_.data());
    }
    scales_.resize(count * num_scales());
    std::size_t const scale_columns = divided_up(place_.stored_rows, block_.columns);  // where transposed
    for (std::size_t r = 0; r < count; ++r) {
      std::size_t const row = place_.row(first + r);
      for (std::size_t b = 0; b < num_scales(); ++b)
        scales_[r * num_scales() + b] = w.transposed ? stored_scales_[b * scale_columns + row / block_.columns]
                                                     : stored_scales_[row / block_.rows * num_scales() + b];
    }
    return {.first = first,
            .count = count,
            .codes = w.transposed ? transposed_.data() : codes_ + place_.row(first) * place_.k,
            .scales = reinterpret_cast<std::byte const*>(scales_.data())};
  }

 private:
  Place const& place_;
  Block block_;
  std::byte const* codes_;
  std::vector<float> stored_scales_;
  std::vector<std::byte> transposed_;
  std::vector<float> scales_;
};

Convert from_fp8(Place const& place, StoredTensor const& codes, StoredTensor const& scale_inv) {
  return
      [&place, rows = Fp8Rows(place, codes, scale_inv)](std::size_t first, std::size_t count, std::byte* out) mutable {
        std::size_t const block = rows.width();
        auto* numbers = reinterpret_cast<float*>(out);
        std::size_t const at_once = place.slice.transposed ? count : 1;
        for (std::size_t r = 0; r < count; r += at_once) {
          WeightCodes const some = rows.rows(first + r, at_once);
          auto const* const scales = reinterpret_cast<float const*>(some.scales);
          for (std::size_t i = 0; i < at_once; ++i, numbers += place.k)
            for (std::size_t b = 0; b < rows.num_scales(); ++b)
              for (std::size_t e = b * block; e < std::min(place.k, (b + 1) * block); ++e)
                numbers[e] = kE4m3Values[std::to_integer<std::uint8_t>(some.codes[i * place.k + e])] *
                             scales[i * rows.num_scales() + b];
        }
      };
}

// blocks [rows][K/32][16] pairs of numbers, scales [rows][K/32].
Convert from_mxfp4(Place const& place, StoredTensor const& blocks, StoredTensor const& scales) {
  return [&place, pairs = blocks.bytes.data(), exponents = scales.bytes.data()](std::size_t first, std::size_t count,
                                                                                std::byte* out) {
    for (std::size_t r = 0; r < count; ++r) {
      std::byte const* pair = pairs + place.row(first + r) * (place.k / 2);
      std::byte const* exponent = exponents + place.row(first + r) * (place.k / kMxfp4Group);
      auto* numbers = reinterpret_cast<float*>(out) + r * place.k;
      for (std::size_t i = 0; i < place.k; i += 2) {
        float const scale = e8m0_to_float(std::to_integer<std::uint8_t>(exponent[i / kMxfp4Group]));
        auto const both = std::to_integer<std::uint8_t>(pair[i / 2]);
        numbers[i] = e2m1_to_float(both) * scale;
        numbers[i + 1] = e2m1_to_float(both >> 4) * scale;
      }
    }
  };
}

Convert from_integers(IntegerWeights weights) {
  return [weights = std::move(weights)](std::size_t first, std::size_t count, std::byte* out) {
    weights.dequantise(first, count, reinterpret_cast<float*>(out));
  };
}

// Rows that lie in the file as they are needed.
void hand_out(Place const& place, StoredTensor const& tensor, std::size_t n, WeightReader::OnRows const& on_rows) {
  std::size_t const row_bytes = place.k * size_of(tensor.dtype);
  std::size_t const at_once = place.slice.row_step == 1 ? n : 1;
  for (std::size_t r = 0; r < n; r += at_once)
    on_rows(
        {.first = r, .count = at_once, .type = tensor.dtype, .data = tensor.bytes.data() + place.row(r) * row_bytes});
}

// Rows that have to be made.
void hand_out(Convert const& convert, DType type, std::size_t n, std::size_t k, WeightReader::OnRows const& on_rows) {
  std::size_t const row_bytes = k * size_of(type);
  std::size_t const at_once = std::min(n, std::max(kChunkBytes / row_bytes, kMinRows));
  AlignedBuffer<std::byte> chunk(at_once * row_bytes);
  for (std::size_t first = 0; first < n; first += at_once) {
    std::size_t const count = std::min(n - first, at_once);
    convert(first, count, chunk.data());
    on_rows({.first = first, .count = count, .type = type, .data = chunk.data()});
  }
}

}  // namespace

std::size_t scale_width(WeightSlice const& w) {
  switch (w.storage) {
    case WeightStorage::numbers:
    case WeightStorage::fp8_scaled:
    case WeightStorage::integers:
      break;
    case WeightStorage::fp8_blocks:
      return w.transposed ? w.block_rows : w.block_columns;
    case WeightStorage::mxfp4:
      return kMxfp4Group;
  }
  EM_CHECK(false, "'" << w.name << "' has no scales");
  return 0;
}

std::vector<TensorInfo> tensors_of(WeightSlice const& w, std::size_t n, std::size_t k) {
  std::size_t const stored_rows = w.stored_rows == 0 ? n : w.stored_rows;
  auto const stacked = [&](std::vector<std::size_t> shape) {
    if (w.stack != 0) shape.insert(shape.begin(), w.stack);
    return shape;
  };
  std::size_t const rows = w.transposed ? k : stored_rows;
  std::size_t const columns = w.transposed ? stored_rows : k;
  switch (w.storage) {
    case WeightStorage::numbers:
      return {{w.name, stacked({rows, columns})}};
    case WeightStorage::fp8_blocks:
      return {{w.name, stacked({rows, columns}), TensorKind::fp8},
              {w.name + "_scale_inv", stacked({divided_up(rows, w.block_rows), divided_up(columns, w.block_columns)})}};
    case WeightStorage::fp8_scaled: {
      auto const [block_rows, block_columns] = block_of(w, rows, columns);
      auto scales = stacked({divided_up(rows, block_rows), divided_up(columns, block_columns)});
      if (w.block_rows == 0 && w.stack == 0) scales = {1};
      return {{w.name, stacked({rows, columns}), TensorKind::fp8}, {w.name + "_scale", std::move(scales)}};
    }
    case WeightStorage::integers:
      return integer_tensors_of(w, n, k);
    case WeightStorage::mxfp4:
      return {{w.name + "_blocks", stacked({rows, columns / kMxfp4Group, kMxfp4Group / 2}), TensorKind::bytes},
              {w.name + "_scales", stacked({rows, columns / kMxfp4Group}), TensorKind::bytes}};
  }
  EM_CHECK(false, "storage " << static_cast<int>(w.storage));
  return {};
}

TensorInfo tensor_of(VectorSlice const& v, std::size_t n) {
  std::vector<std::size_t> shape{v.stored_length == 0 ? n : v.stored_length};
  if (v.stack != 0) shape.insert(shape.begin(), v.stack);
  return {v.name, std::move(shape)};
}

WeightReader::Loaded WeightReader::load(TensorInfo info, std::size_t stack, std::size_t index) {
  StoredTensor tensor = stack == 0 ? source_.load(info) : source_.load_entry(info, index);
  bytes_read_ += tensor.bytes.size();
  return {.info = std::move(info), .index = index, .tensor = std::move(tensor)};
}

std::vector<WeightReader::Loaded> const& WeightReader::load(WeightSlice const& slice, std::size_t n, std::size_t k) {
  std::vector<TensorInfo> infos = tensors_of(slice, n, k);
  std::erase_if(infos, [](TensorInfo const& info) { return !info.values.empty(); });
  bool const there = std::ranges::equal(infos, last_, [&](TensorInfo const& wanted, Loaded const& loaded) {
    return wanted == loaded.info && slice.index == loaded.index;
  });
  if (there) return last_;
  last_.clear();
  for (TensorInfo& info : infos) last_.push_back(load(std::move(info), slice.stack, slice.index));
  return last_;
}

void WeightReader::read(WeightSlice const& slice, std::size_t n, std::size_t k, OnRows const& on_rows) {
  refuse_bad(slice.name, problem_of(slice, n, k));
  std::vector<Loaded> const& tensors = load(slice, n, k);
  StoredTensor const& values = tensors.front().tensor;
  Place const place{slice, k, slice.stored_rows == 0 ? n : slice.stored_rows};
  switch (slice.storage) {
    case WeightStorage::numbers:
      if (!slice.transposed) return hand_out(place, values, n, on_rows);
      return hand_out(from_transposed(place, values), values.dtype, n, k, on_rows);
    case WeightStorage::fp8_blocks:
    case WeightStorage::fp8_scaled:
      return hand_out(from_fp8(place, values, tensors.back().tensor), DType::f32, n, k, on_rows);
    case WeightStorage::mxfp4:
      return hand_out(from_mxfp4(place, values, tensors.back().tensor), DType::f32, n, k, on_rows);
    case WeightStorage::integers: {
      std::vector<StoredTensor const*> views;
      for (Loaded const& loaded : tensors) views.push_back(&loaded.tensor);
      return hand_out(from_integers(IntegerWeights(slice, n, k, std::move(views))), DType::f32, n, k, on_rows);
    }
  }
}

void WeightReader::read_codes(WeightSlice const& slice, std::size_t n, std::size_t k, OnCodes const& on_codes) {
  refuse_bad(slice.name, problem_of(slice, n, k));
  EM_CHECK(slice.storage == WeightStorage::fp8_blocks || slice.storage == WeightStorage::mxfp4,
           "'" << slice.name << "' has no codes");
  std::vector<Loaded> const& tensors = load(slice, n, k);
  StoredTensor const& codes = tensors.front().tensor;
  StoredTensor const& scales = tensors.back().tensor;
  Place const place{slice, k, slice.stored_rows == 0 ? n : slice.stored_rows};
  bool const adjoin = slice.row_step == 1;
  if (slice.storage == WeightStorage::mxfp4) {
    std::size_t const at_once = adjoin ? n : 1;
    for (std::size_t first = 0; first < n; first += at_once)
      on_codes({.first = first,
                .count = at_once,
                .codes = codes.bytes.data() + place.row(first) * (k / 2),
                .scales = scales.bytes.data() + place.row(first) * (k / kMxfp4Group)});
    return;
  }
  Fp8Rows rows(place, codes, scales);
  std::size_t const at_once = adjoin || slice.transposed ? std::min(n, std::max(kChunkBytes / k, kMinRows)) : 1;
  for (std::size_t first = 0; first < n; first += at_once) on_codes(rows.rows(first, std::min(n - first, at_once)));
}

std::vector<float> WeightReader::read(VectorSlice const& slice, std::size_t n) {
  refuse_bad(slice.name, problem_of(slice, n));
  StoredTensor const stored = load(tensor_of(slice, n), slice.stack, slice.index).tensor;
  std::vector<float> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = element(stored, slice.first + i * slice.step);
  return out;
}

}  // namespace expertmesh
