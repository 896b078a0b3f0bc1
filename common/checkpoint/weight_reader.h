// Reads weights and vectors out of a checkpoint, however they are stored.
#pragma once
#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/weight_slice.h"

namespace expertmesh {

// The tensors behind a weight [n,k]: its numbers, then its scales and what else it has.
std::vector<TensorInfo> tensors_of(WeightSlice const& slice, std::size_t n, std::size_t k);
TensorInfo tensor_of(VectorSlice const& slice, std::size_t n);

// Rows [first, first + count) of a weight [N,K]: row-major [count,K].
struct WeightRows {
  std::size_t first = 0;
  std::size_t count = 0;
  DType type = DType::f32;  // f32, bf16 or f16
  std::byte const* data = nullptr;
};

// The same of a weight that the checkpoint has as codes with scales.
struct WeightCodes {
  std::size_t first = 0;
  std::size_t count = 0;
  std::byte const* codes = nullptr;   // fp8_blocks: E4M3 [count,K]; mxfp4: two in a byte [count,K/2], low half = even k
  std::byte const* scales = nullptr;  // fp8_blocks: f32 [count,ceil(K/scale_width)]; mxfp4: E8M0 [count,K/32]
};
// Numbers of a row that share a scale: of a weight that is not stored as numbers.
std::size_t scale_width(WeightSlice const& slice);

// Weights that lie in one tensor (gate and up fused) are best read one after the other: it is loaded once.
// Not thread-safe; any number of readers may share a source.
class WeightReader {
 public:
  explicit WeightReader(WeightSource const& source) : source_(source) {}

  // Hands out every row of the weight [n,k] once, in ascending order. Rows that lie in the file as they are needed come
  // straight from the mapping; others are converted in chunks that stay in cache. Scales are applied in fp32: NaN and
  // overflow go where they go. Throws what the source throws, and ModelError naming the tensor if problem_of(slice) has
  // something to say.
  using OnRows = std::function<void(WeightRows const&)>;
  void read(WeightSlice const& slice, std::size_t n, std::size_t k, OnRows const& on_rows);
  // The same, as codes with scales: of a weight that is not stored as numbers. Each number is code x scale in fp32.
  using OnCodes = std::function<void(WeightCodes const&)>;
  void read_codes(WeightSlice const& slice, std::size_t n, std::size_t k, OnCodes const& on_codes);
  std::vector<float> read(VectorSlice const& slice, std::size_t n);

  [[nodiscard]] std::size_t bytes_read() const { return bytes_read_; }  // of the checkpoint, so far

 private:
  struct Loaded {
    TensorInfo info;
    std::size_t index = 0;  // in a stack
    StoredTensor tensor;
  };
  // The tensors_of() the slice, or its matrix of them.
  std::vector<Loaded> const& load(WeightSlice const& slice, std::size_t n, std::size_t k);
  Loaded load(TensorInfo info, std::size_t stack, std::size_t index);

  WeightSource const& source_;
  std::vector<Loaded> last_;  // of the weight read last
  std::size_t bytes_read_ = 0;
};

}  // namespace expertmesh
