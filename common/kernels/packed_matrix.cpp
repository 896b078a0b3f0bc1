#include "common/kernels/packed_matrix.h"

#include <cstring>
#include <type_traits>

#include "common/base/bf16.h"
#include "common/base/check.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

std::size_t padded_k(WeightFormat const& format, std::size_t k) {
  return format.storage == DType::bf16 ? (k + 1) / 2 * 2 : k;
}

template <class From>
float float_of(From x) {
  if constexpr (std::is_same_v<From, float>)
    return x;
  else
    return to_float(x);
}

// One row n of `k` numbers into its panel. Rows of a mapped file need not be aligned.
template <class From>
void pack_row(WeightFormat const& format, std::byte const* row, std::size_t n, std::size_t k, std::byte* data) {
  std::size_t const panel = n / kPanelColumns * kPanelColumns * padded_k(format, k);  // elements before this panel
  std::size_t const lane = n % kPanelColumns;
  auto const number = [&](std::size_t i) {
    From x;
    std::memcpy(&x, row + i * sizeof(From), sizeof(From));
    return x;
  };
  if (format.storage == DType::f32) {
    float* out = reinterpret_cast<float*>(data) + panel + lane;
    for (std::size_t i = 0; i < k; ++i) out[i * kPanelColumns] = float_of(number(i));
  } else {
    bf16* out = reinterpret_cast<bf16*>(data) + panel + 2 * lane;
    for (std::size_t i = 0; i < k; ++i) {
      bf16& element = out[i / 2 * 2 * kPanelColumns + i % 2];
      if constexpr (std::is_same_v<From, bf16>)
        element = number(i);
      else
        element = to_bf16(float_of(number(i)));
    }
  }
}

template <class From>
void pack_rows(WeightFormat const& format, std::byte const* rows, std::size_t first, std::size_t count, std::size_t k,
               std::byte* data) {
  for (std::size_t r = 0; r < count; ++r) pack_row<From>(format, rows + r * k * sizeof(From), first + r, k, data);
}

}  // namespace

std::size_t packed_bytes(WeightFormat const& format, std::size_t n, std::size_t k) {
  return (n + kPanelColumns - 1) / kPanelColumns * kPanelColumns * padded_k(format, k) * size_of(format.storage);
}

PackedMatrix::PackedMatrix(WeightFormat format, std::size_t n, std::size_t k)
    : format_(format), n_(n), k_(k), data_(packed_bytes(format, n, k)) {
  EM_CHECK((format == kFloat32Weights || format == kBfloat16Weights),
           "weight format with storage " << name_of(format.storage) << " has no kernel");
}

void PackedMatrix::set_rows(std::size_t first_row, std::size_t num_rows, DType type, std::byte const* rows) {
  EM_CHECK(first_row + num_rows <= n_, "rows " << first_row << " to " << first_row + num_rows << " of " << n_);
  switch (type) {
    case DType::f32:
      return pack_rows<float>(format_, rows, first_row, num_rows, k_, data_.data());
    case DType::bf16:
      return pack_rows<bf16>(format_, rows, first_row, num_rows, k_, data_.data());
    case DType::f16:
      return pack_rows<fp16>(format_, rows, first_row, num_rows, k_, data_.data());
    default:
      EM_CHECK(false, "cannot pack " << name_of(type));
  }
}

}  // namespace expertmesh
