// The rotation angles of a step's tokens, once for all layers with the same RopeSpec.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// cos and sin of the tokens' angles, times the spec's magnitude; R = rotary_dim.
struct RopeAngles {
  MatrixView<float const> cos;  // [T,R/2]
  MatrixView<float const> sin;

  [[nodiscard]] RopeAngles rows(std::size_t begin, std::size_t count) const {
    return {cos.row_range(begin, count), sin.row_range(begin, count)};
  }
};

// The inverse frequencies of a sequence of `length` tokens: out[i], i < R/2, in float32 as transformers
// (modeling_rope_utils.py) computes them. With f[i] = theta^(-2i/R):
//   standard   f
//   linear     f / factor
//   dynamic    f of theta * (factor * length / original - (factor - 1))^(R/(R-2)) where length > original
//   banded     f where the wavelength 2 pi / f is below original / high_freq_factor, f / factor where it is above
//              original / low_freq_factor, between them mixed in proportion to original / wavelength ("llama3" of
//              configs)
//   yarn       f where a pair turns more than beta_fast times within `original` tokens, f / factor where less than
//              beta_slow times, between them mixed in proportion to i (Peng et al. 2023, arXiv:2309.00071)
//   longrope   f / short_factors, or f / long_factors where length > original (Ding et al. 2024, arXiv:2402.13753)
void inverse_frequencies(RopeSpec const& spec, std::size_t length, std::span<float> out);

class RopeTable {
 public:
  // device: that rotates; null: this host.
  RopeTable(RopeSpec const& spec, std::size_t max_tokens, DeviceMemory* device = nullptr);
  // For tokens at `positions` [T] of sequences with prompts of `prompt_lengths` [T] tokens. The length that kinds with
  // depends_on_length() go by is max(prompt_length, position + 1): a pure function of the token and its prompt.
  void compute(Exec const& exec, std::span<std::uint32_t const> positions,
               std::span<std::uint32_t const> prompt_lengths);
  // Of the tokens of the last compute().
  [[nodiscard]] RopeAngles angles() const;
  [[nodiscard]] RopeSpec const& spec() const { return spec_; }

 private:
  RopeSpec spec_;
  std::vector<float> inverse_frequencies_;  // [R/2] of sequences up to original_max_position
  Matrix<float> cos_;                       // [T,R/2]
  Matrix<float> sin_;
  Matrix<float> device_cos_;  // the same on the device, if there is one
  Matrix<float> device_sin_;
  std::size_t num_tokens_ = 0;
};

}  // namespace expertmesh
