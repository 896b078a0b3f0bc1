// Where a weight lies in a checkpoint: a whole tensor, or a part of one that holds several weights.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace expertmesh {

constexpr std::size_t kMxfp4Group = 32;  // elements of K that share a scale

// How the checkpoint stores a weight's numbers.
enum class WeightStorage : std::uint8_t {
  numbers,     // f32, bf16 or f16
  fp8_blocks,  // e4m3, and f32 "<name>_scale_inv" [ceil(rows/BR),ceil(columns/BC)]: weight = e4m3 x its block's scale
  mxfp4,       // "<name>_blocks" u8 [rows,K/32,16], low nibble = even k, and "<name>_scales" u8 [rows,K/32], E8M0
};

// A weight [N,K] of y = x W^T. Row n of it is row first_row + n * row_step of the stored matrix.
struct WeightSlice {
  std::string name;
  std::size_t stack = 0;        // the tensor has a leading dimension of this many matrices; 0: it is one matrix
  std::size_t index = 0;        // of this weight's matrix in the stack
  std::size_t stored_rows = 0;  // of the stored matrix, if it holds more than this weight; 0: N
  std::size_t first_row = 0;
  std::size_t row_step = 1;
  bool transposed = false;  // stored [K,rows]; never with mxfp4
  WeightStorage storage = WeightStorage::numbers;
  std::size_t block_rows = 128;     // BR of fp8_blocks
  std::size_t block_columns = 128;  // BC
  bool operator==(WeightSlice const&) const = default;
};

// A vector [N], stored as numbers. Element n of it is element first + n * step of the stored vector.
struct VectorSlice {
  std::string name;
  std::size_t stack = 0;  // as above
  std::size_t index = 0;
  std::size_t stored_length = 0;  // if it holds more than this vector; 0: N
  std::size_t first = 0;
  std::size_t step = 1;
  bool operator==(VectorSlice const&) const = default;
};

// Why this cannot be a weight [n,k] or a vector [n] of its tensor; empty: it can.
std::string problem_of(WeightSlice const& slice, std::size_t n, std::size_t k);
std::string problem_of(VectorSlice const& slice, std::size_t n);

}  // namespace expertmesh
