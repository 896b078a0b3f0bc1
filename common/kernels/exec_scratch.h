// Scratch of the ops, allocated once from ExecLimits. Private to common/kernels.
#pragma once
#include "common/base/aligned_buffer.h"
#include "common/kernels/exec.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

struct Exec::Scratch {
  explicit Scratch(ExecLimits const& limits, std::size_t num_threads)
      : row_bytes((limits.max_columns + 15) / 16 * 16 * sizeof(float)),
        input(limits.max_rows * row_bytes),
        hidden(limits.max_rows * row_bytes),
        output(limits.max_rows * row_bytes),
        x_rows(limits.max_rows),
        y_rows(limits.max_rows),
        attention_row(attend_scratch_floats(limits.max_value_dim)),
        attention(num_threads * attention_row) {}

  std::size_t row_bytes;              // of one row of the next three
  AlignedBuffer<std::byte> input;     // [max_rows] inputs in the weight's activation type; the activated FFN rows
  AlignedBuffer<std::byte> hidden;    // [max_rows] fp32 gate and up
  AlignedBuffer<std::byte> output;    // [max_rows] fp32 FFN outputs before rounding
  AlignedBuffer<void const*> x_rows;  // [max_rows]
  AlignedBuffer<float*> y_rows;       // [max_rows]
  std::size_t attention_row;          // floats of one thread in the next
  AlignedBuffer<float> attention;     // [threads] AttendPart::scratch

  float* attention_of(std::size_t thread) { return attention.data() + thread * attention_row; }
  std::byte* input_row(std::size_t r) { return input.data() + r * row_bytes; }
  float* hidden_row(std::size_t r) { return reinterpret_cast<float*>(hidden.data() + r * row_bytes); }
  float* output_row(std::size_t r) { return reinterpret_cast<float*>(output.data() + r * row_bytes); }
};

}  // namespace expertmesh
