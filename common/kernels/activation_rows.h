// What a row of activations becomes before it meets a weight, by the rule of the weight's format, or goes to another
// process. Private to common/kernels.
#pragma once
#include <cstring>

#include "common/config/weight_format.h"
#include "common/kernels/exec.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

// Whether rows of this type (f32 or bf16) meet the weight as they are.
inline bool meets_as_is(WeightFormat const& format, DType type) {
  return (format.activation == ActivationRule::none && type == DType::f32) ||
         (format.activation == ActivationRule::round_to_bf16 && type == DType::bf16);
}

// Of a row of k numbers that has become what meets the weight.
inline std::size_t activation_row_bytes(WeightFormat const& format, std::size_t k) {
  switch (format.activation) {
    case ActivationRule::none:
      return k * sizeof(float);
    case ActivationRule::round_to_bf16:
      return k * sizeof(std::uint16_t);
    case ActivationRule::quantise_to_int8:
      return quantised_row_bytes(k);
  }
  return 0;
}

inline void prepare_row(Exec const& exec, WeightFormat const& format, float const* x, std::size_t k, void* out) {
  switch (format.activation) {
    case ActivationRule::none:
      std::memcpy(out, x, k * sizeof(float));
      return;
    case ActivationRule::round_to_bf16:
      return exec.table().round_bf16(x, k, static_cast<std::uint16_t*>(out));
    case ActivationRule::quantise_to_int8:
      return (format.storage == DType::i4 ? exec.table().quantise_for_int4 : exec.table().quantise_int8)(
          x, k, static_cast<std::byte*>(out));
  }
}

// As a row of the wire type, f32 or bf16.
inline void to_wire_row(Exec const& exec, float const* x, std::size_t n, DType wire, std::byte* out) {
  if (wire == DType::f32)
    std::memcpy(out, x, n * sizeof(float));
  else
    exec.table().round_bf16(x, n, reinterpret_cast<std::uint16_t*>(out));
}

inline void gemm_of(Exec const& exec, WeightFormat const& format, GemmPart const& part) {
  switch (format.activation) {
    case ActivationRule::none:
      return exec.table().gemm_f32(part);
    case ActivationRule::round_to_bf16:
      if (format.storage == DType::f4_e2m1) return exec.table().gemm_mxfp4(part);
      if (format.storage == DType::f8_e4m3) return exec.table().gemm_fp8(part);
      return exec.table().gemm_bf16(part);
    case ActivationRule::quantise_to_int8:
      return (format.storage == DType::i4 ? exec.table().gemm_int4 : exec.table().gemm_int8)(part);
  }
}

}  // namespace expertmesh
