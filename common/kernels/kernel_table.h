// The inner loops of the ops, one table per ISA. Private to common/kernels. Every function is single-threaded and works
// on the part it is given; the ops divide the work among threads. All fp32 arithmetic has the same order in every ISA.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/config/activation.h"
#include "common/config/weight_format.h"

namespace expertmesh {

constexpr std::size_t kLanes = 16;          // of a vector
constexpr std::size_t kPanelColumns = 32;   // output columns of a weight panel
constexpr std::size_t kRowsPerPart = 32;    // most query heads, of all its tokens, in an AttendPart
constexpr std::size_t kTilePositions = 64;  // whose scores become weights together, from a multiple of it on
constexpr std::size_t kStreamFloats = 128;

// y[m][n] = sum over k of x[m][k] w[n][k] for the columns of panels [panel_begin, panel_end).
struct GemmPart {
  void const* const* x;  // [M] rows of K elements: float, bfloat16 bits, or as the weights' quantise function made them
  float* const* y;       // [M] rows of N floats
  std::size_t m, n, k;
  std::byte const* panels;  // PackedMatrix::data()
  std::size_t panel_begin, panel_end;
  std::size_t group = 0;   // of K: numbers that share a scale of FP8
  bool continues = false;  // bfloat16: y += …, y having the sums over the k before
  // Weights that are read after these: fetched from memory while these are multiplied.
  std::byte const* next = nullptr;
  std::size_t next_bytes = 0;
};

// What a token attends to: positions first … last, both included. position: its own.
struct AttendToken {
  std::uint32_t first, last, position;
};

// Query heads of some tokens of a sequence, those of some KV heads, against the blocks of the sequence.
struct AttendPart {
  float const* q;                       // [tokens][kv_heads][heads][key_dim], from token to token q_stride
  float* out;                           // [tokens][kv_heads][heads][value_dim], out_stride
  std::size_t q_stride, out_stride;     // floats
  AttendToken const* token;             // [tokens]; no gap between what they attend to
  std::size_t tokens, kv_heads, heads;  // heads: of a KV head. Their product: at most kRowsPerPart
  std::size_t key_dim, value_dim;
  std::uint32_t const* blocks;  // block table
  // What the first KV head has in block 0, and the bytes to the next head's and to the next block's: its keys
  // [key_dim][16], then its values [16][value_dim], then in int8 scales [2][16], as attend_impl.h has them. Of bfloat16
  // keys lie as [key_dim / 2, rounded up][16][2], an odd last one beside a 0, and values as [8][value_dim][2].
  std::byte const* kv;
  std::size_t head_bytes, block_bytes;
  std::size_t value_offset, scale_offset;  // bytes
  bool values_in_keys;                     // a position's value is the first value_dim elements of its key
  float scale;
  float const* sinks;  // [kv_heads][heads] logits of keys without a value, or null
  // Added to the scaled scores, or null: of head h, where a block's first position is d after the query's (d may be
  // negative, and is held within -bias_reach - 15 … bias_reach), the 16 numbers from bias[h * bias_stride + d] on.
  float const* bias;
  std::size_t bias_stride;
  std::uint32_t bias_reach;
  float* scratch;  // attend_scratch_floats() of the larger dim
  // What the same thread attends to after it, of the same cache, or null.
  AttendPart const* next;
};

// Queries and accumulators [rows][head_dim] and the values of a tile [64][head_dim], in whole vectors.
constexpr std::size_t attend_scratch_floats(std::size_t head_dim) {
  return (2 * kRowsPerPart + kTilePositions) * ((head_dim + kLanes - 1) / kLanes * kLanes);
}

// Room for a row of n numbers in int8, whatever the ISA makes of it: 4-byte aligned.
constexpr std::size_t quantised_row_bytes(std::size_t n) {
  constexpr std::size_t kGroup = kInt8Weights.group_size;
  return (n + kGroup - 1) / kGroup * (2 * sizeof(float) + kGroup * sizeof(std::int16_t));
}

struct KernelTable {
  void (*gemm_f32)(GemmPart const&);
  void (*gemm_bf16)(GemmPart const&);
  void (*gemm_int8)(GemmPart const&);
  void (*gemm_int4)(GemmPart const&);
  void (*gemm_mxfp4)(GemmPart const&);  // rows of bfloat16, and the bits of gemm_bf16 with the numbers the codes are
  void (*gemm_fp8)(GemmPart const&);    // the same
  void (*attend_f32)(AttendPart const&);
  void (*attend_bf16)(AttendPart const&);
  void (*attend_int8)(AttendPart const&);
  void (*round_bf16)(float const* x, std::size_t n, std::uint16_t* out);
  void (*widen_bf16)(std::uint16_t const* x, std::size_t n, float* out);
  void (*quantise_int8)(float const* x, std::size_t n, std::byte* out);  // out: quantised_row_bytes(n), for gemm_int8
  void (*quantise_for_int4)(float const* x, std::size_t n, std::byte* out);  // the same numbers, for gemm_int4
  // Norms: out may be x; no weight or bias: null.
  void (*rms_norm)(float const* x, float const* weight, std::size_t n, float epsilon, float* out);
  void (*layer_norm)(float const* x, float const* weight, float const* bias, std::size_t n, float epsilon, float* out);
  void (*activate)(ActivationSpec const& f, float const* gate, float const* up, std::size_t n,
                   float* out);  // no gate: 0
  void (*add)(float* x, float const* y, std::size_t n);
  void (*axpy_f32)(float a, float const* x, std::size_t n, float* y);  // y = fma(a, x, y)
  void (*axpy_bf16)(float a, std::uint16_t const* x, std::size_t n, float* y);

  // What machine_ceilings measures. Each returns a number that depends on everything it did.
  float (*read_stream)(float const* x, std::size_t n);  // n: a multiple of kStreamFloats
  float (*peak_f32)(std::size_t rounds);
  float (*peak_bf16)(std::size_t rounds);
  float (*peak_int8)(std::size_t rounds);
  float (*peak_int4)(std::size_t rounds);
  std::size_t
      peak_multiply_adds;  // vector operations of one round; 16 multiply-adds each, 32 in bf16, 64 in int8 and int4
};

// Those of an ISA may be called where its processor_runs() (isa/processor.h) only.
KernelTable const& scalar_kernels();
#if defined(__x86_64__)
KernelTable const& avx2_kernels();
KernelTable const& avx_vnni_kernels();
KernelTable const& avx512_kernels();
KernelTable const& avx512_vnni_kernels();
KernelTable const& avx512_bf16_kernels();
KernelTable const& amx_kernels();
#elif defined(__aarch64__)
KernelTable const& neon_kernels();
KernelTable const& neon_dot_kernels();
#endif

}  // namespace expertmesh
