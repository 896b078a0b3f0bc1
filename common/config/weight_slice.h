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
  fp8_blocks,  // e4m3, and "<name>_scale_inv" [ceil(rows/BR),ceil(columns/BC)]: weight = e4m3 x its block's scale
  mxfp4,       // "<name>_blocks" u8 [rows,K/32,16], low nibble = even k, and "<name>_scales" u8 [rows,K/32], E8M0
  fp8_scaled,  // as fp8_blocks, its scales called "<name>_scale"; blocks of 0 rows or columns are of all there are, and
               // one scale for everything is [1]
  integers,    // of a linear module: see StoredIntegers
};

// Where integer codes lie. P = 32/bits of them are in an int32, the first one in its lowest bits; what does not fill
// the last one is left over. G groups of K, each with a scale and a zero point for every row.
enum class IntegerLayout : std::uint8_t {
  gptq,    // "<name>.qweight" i32 [K/P,rows], words along K; ".scales" [G,rows]; ".qzeros" i32 [G,rows/P]
  awq,     // "<name>.qweight" i32 [K,rows/P], words along the rows in the order 0 2 4 6 1 3 5 7; ".scales" [G,rows];
           // ".qzeros" i32 [G,rows/P] in that order, too
  packed,  // "<name>.weight_packed" i32 [rows,K/P], words along K; ".weight_scale" [rows,G]; ".weight_zero_point" i32
           // [rows/P,G], words along the rows; ".weight_shape" [2]: rows, K
  bytes,   // "<name>.weight" i8 [rows,K], signed; ".weight_scale" [rows,G]; ".weight_zero_point" i8 [rows,G], signed
};

enum class ZeroPoints : std::uint8_t {
  middle,            // none is stored: half the range, 2^(bits-1) of unsigned codes, 0 of signed ones
  stored,            // as the layout has them
  stored_minus_one,  // one less than they are, modulo 2^bits
};

// Integers with a scale for each group of K: weight = (code - zero point) x scale, in fp32.
struct StoredIntegers {
  IntegerLayout layout = IntegerLayout::gptq;
  std::size_t bits = 4;        // 4 or 8
  std::size_t group_size = 0;  // elements of K that share a scale, the last group has what is left; 0: all of K
  ZeroPoints zero_points = ZeroPoints::stored;
  // i32 [K] says which group an element of K belongs to: ".g_idx" of gptq, ".weight_g_idx" of packed and bytes. Else
  // groups lie one behind the other.
  bool has_group_index = false;
  bool one_scale = false;  // bytes only: scale and zero point are [1], for the whole matrix
  bool operator==(StoredIntegers const&) const = default;
  [[nodiscard]] std::size_t num_groups(std::size_t k) const { return group_size == 0 ? 1 : (k - 1) / group_size + 1; }
};

// A weight [N,K] of y = x W^T. Row n of it is row first_row + n * row_step of the stored matrix.
struct WeightSlice {
  std::string name{};           // of the tensor; of the linear module where its weights are integers
  std::size_t stack = 0;        // the tensor has a leading dimension of this many matrices; 0: it is one matrix
  std::size_t index = 0;        // of this weight's matrix in the stack
  std::size_t stored_rows = 0;  // of the stored matrix, if it holds more than this weight; 0: N
  std::size_t first_row = 0;
  std::size_t row_step = 1;
  bool transposed = false;  // stored [K,rows]; never with mxfp4 and integers
  WeightStorage storage = WeightStorage::numbers;
  std::size_t block_rows = 128;     // BR of fp8
  std::size_t block_columns = 128;  // BC
  StoredIntegers integers{};
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

// How the numbers are stored, for people: "int4 in groups of 128 (gptq, zero points, group index)"; empty for plain
// numbers.
std::string form_of(WeightSlice const& slice);

// Why this cannot be a weight [n,k] or a vector [n] of its tensor; empty: it can.
std::string problem_of(WeightSlice const& slice, std::size_t n, std::size_t k);
std::string problem_of(VectorSlice const& slice, std::size_t n);

}  // namespace expertmesh
