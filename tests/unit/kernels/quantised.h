// A row in int8 as the format says it, number by number.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/config/weight_format.h"
#include "common/tensor/tensor.h"

namespace expertmesh::reference {

constexpr std::size_t kInt8GroupSize = kInt8Weights.group_size;

struct Quantised {
  std::vector<float> scales;  // [groups]
  std::vector<int> whole;     // [K]
};

inline Quantised quantised(float const* x, std::size_t k) {
  Quantised out;
  for (std::size_t begin = 0; begin < k; begin += kInt8GroupSize) {
    std::size_t const end = std::min(k, begin + kInt8GroupSize);
    float largest = 0;
    bool finite = true;
    for (std::size_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      largest = std::max(largest, std::abs(x[i]));
    }
    bool const counts = finite && largest >= 1e-30F;
    out.scales.push_back(!finite ? std::numeric_limits<float>::quiet_NaN() : counts ? largest / 127.0F : 0.0F);
    for (std::size_t i = begin; i < end; ++i)
      out.whole.push_back(counts ? static_cast<int>(std::nearbyint(x[i] * (127.0F / largest))) : 0);
  }
  return out;
}

// Bits, or NaN at the same places.
inline bool same_numbers(MatrixView<float const> a, MatrixView<float const> b) {
  for (std::size_t r = 0; r < a.rows; ++r)
    for (std::size_t c = 0; c < a.cols; ++c)
      if (std::memcmp(a.row(r) + c, b.row(r) + c, sizeof(float)) != 0 &&
          !(std::isnan(a.row(r)[c]) && std::isnan(b.row(r)[c])))
        return false;
  return a.rows == b.rows && a.cols == b.cols;
}

}  // namespace expertmesh::reference
